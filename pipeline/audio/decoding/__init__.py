"""Decoding of sound files, and checks of what their headers declare."""
