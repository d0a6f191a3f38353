"""The tokenized dataset: shards, manifest, storage, sampler, data loader."""
