"""EnCodecMAE's parts: the model, and the layouts of its released checkpoints."""
