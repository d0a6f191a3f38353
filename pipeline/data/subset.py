"""A part of a dataset: some recordings of its training split, and another split as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import Sample, ShardInfo, ShardWriter, read_shard
from pipeline.data.storage import Storage, open_storage


def write_subset(source: str | Path, out: str | Path, share: float, seed: int, train: str, valid: str) -> Manifest:
    """Write a part of a dataset, unless `out` has it already, and return its manifest.

    A recording is in the part or not with all its clips, by a hash of its path and the seed: a part contains each
    smaller part of the same seed.

    Args:
        source: Folder or address of the dataset.
        out: Folder of the part.
        share: The part of the recordings, above 0 and below 1.
        seed: Of the choice.
        train: The split of which a part is kept.
        valid: The split that is copied.

    Raises:
        InputError: No recording is chosen, or `out` has another dataset.
    """
    store, target = open_storage(source), open_storage(out)
    manifest = Manifest.load(store)
    digest = hashlib.sha256(f"{manifest.splits} {share} {seed} {train} {valid}".encode()).hexdigest()
    if target.size(MANIFEST_NAME) is not None:
        part = Manifest.load(target)
        if part.plan != digest:
            raise InputError(f"out={out}: it has a part of another dataset, or of another seed: give another out=")
        return part
    Path(out).mkdir(parents=True, exist_ok=True)
    chosen = list(_copy(store, target, manifest.splits.get(train, []), seed, share))
    if not chosen:
        raise InputError(
            f"shares={share:g}: no recording of {manifest.path} is in this part of {train}: give larger shares"
        )
    splits = {train: chosen, valid: list(_copy(store, target, manifest.splits.get(valid, []), seed, 1))}
    part = replace(manifest, splits=splits, silent=0, skipped=[], adjusted=[], plan=digest, path=str(out))
    part.save(target)
    return part


def _copy(store: Storage, target: Storage, shards: list[ShardInfo], seed: int, share: float) -> Iterator[ShardInfo]:
    """Copy the clips of the chosen recordings, and yield what there is to say about the shards that have some."""
    for shard in shards:
        samples = [
            sample for sample in read_shard(store.display_path(shard.name)) if share == 1 or _hash(sample, seed) < share
        ]
        if samples:
            with ShardWriter(target, shard.name) as writer:
                for sample in samples:
                    writer.add(sample)
            yield writer.info


def _hash(sample: Sample, seed: int) -> float:
    """A number from 0 to 1 for the recording of a sample."""
    recording = sample.metadata.get("path", sample.key)
    return int.from_bytes(hashlib.sha256(f"{seed} {recording}".encode()).digest()[:8], "big") / 2**64
