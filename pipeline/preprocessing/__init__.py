"""Carries clips from `corpora` through `sound` into the `cache`: what `pipeline.preprocess` does.

plan.py      clips, cut into shards               once, in the command's own process
digest.py    recordings -> hashes of their sound  a reader process, while there is no plan yet
work.py      shards, cut into jobs, and back      there too
read.py      jobs -> sound, in reader processes   each encoder has its own
encode.py    sound -> codes and prompts           one process a GPU or a core
"""
