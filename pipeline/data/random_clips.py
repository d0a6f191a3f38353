"""Random samples of a tokenized dataset."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, iter_samples, load_index
from pipeline.data.storage import Storage


def sample_clips(
    store: Storage, manifest: Manifest, num_clips: int, seed: int, split: str | None = None
) -> Iterator[Sample]:
    """Yield random samples, without repetition, in the order on disk.

    Args:
        store: of the dataset.
        manifest: of the dataset.
        num_clips: number of samples; fewer if the split is smaller.
        seed: the same seed gives the same samples.
        split: its name; None for all splits.

    Raises:
        InputError: the dataset does not have the split.
    """
    if split is not None and split not in manifest.splits:
        raise InputError(f"split={split}: {manifest.path} has {', '.join(manifest.splits)}")
    parts = manifest.splits.values() if split is None else [manifest.splits[split]]
    shards = [shard for part in parts for shard in part]
    ends = np.cumsum([shard.samples for shard in shards])
    total = int(ends[-1]) if shards else 0
    positions = np.random.default_rng(seed).choice(total, min(num_clips, total), replace=False)
    positions.sort()
    numbers = np.searchsorted(ends, positions, side="right")
    for number in np.unique(numbers).tolist():
        name = shards[number].name
        shard = store.open(name)
        rows = positions[numbers == number] - (ends[number] - shards[number].samples)
        index = load_index(store, name, shard)
        yield from iter_samples(shard, index[rows[rows < len(index)]])
