"""Between a trained model and a listener: what `pipeline.generate`, `.evaluate` and `.report` do."""
