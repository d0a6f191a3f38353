"""Audio embedding models."""
