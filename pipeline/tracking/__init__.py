"""Experiment tracking: metrics.jsonl and Weights & Biases."""
