"""Listening tests: a page on which people rate sounds without knowing what they are, and its results."""
