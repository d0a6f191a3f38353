"""What stands behind `pipeline.tracking`: W&B kept at arm's length from the training loop."""
