"""From a corpus to a tokenized dataset: what `python -m pipeline.preprocess` does.

The walk of a clip:

    corpora -> shard_planner -> shard_builder -> decode_workers -> encoder -> shard_builder -> data
    listed     planned          queued           decoded           encoded    written

runner.py           checks the settings, compares them with the existing dataset, and runs the steps below
partition.py        the part of the plan that this process builds, where several machines share the work
shard_planner.py    clips, in the corpus's order, cut into shards; runs once, in the command's own process
audio_hash.py       hashes of decoded recordings, by which the corpora find copies
shard_builder.py    shards cut into jobs, and encoded clips assembled into shards again; in the same process
encoder_pool.py     one encoder a GPU or CPU core, and the jobs that each receives
encoder.py          decoded audio to codes and prompts, on one device
decode_workers.py   the processes that decode for one encoder: prefetch, timeouts, retries after a crash
decode.py           a job's files to mono float32 samples, or the reason why a clip is skipped
messages.py         what the command prints
progress.py         the progress bar
"""
