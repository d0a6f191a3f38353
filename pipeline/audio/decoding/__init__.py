"""Decoding of audio files, and checks of the lengths that their headers declare."""
