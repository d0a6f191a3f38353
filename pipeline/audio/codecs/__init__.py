"""Parts of neural audio codecs."""
