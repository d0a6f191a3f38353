"""Training: data, engine, checkpoints, estimates."""
