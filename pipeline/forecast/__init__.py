"""What a training run will take, before it is built: for `pipeline.preflight` and the memory table."""
