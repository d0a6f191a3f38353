"""Shards and their manifest: written, verified, and read back as batches."""
