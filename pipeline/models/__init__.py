"""The codec language model and its codebook patterns."""
