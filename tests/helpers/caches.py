"""Small datasets of synthetic clips, each of which contains its own number."""

import itertools
from pathlib import Path

import numpy as np

from pipeline.data.dataloader import Batch
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter

K, P = 3, 5
CODEC = {
    "name": "test", "weights": "0" * 64, "sample_rate": 24000, "frame_rate": 75, "codebooks": K, "codebook_size": 1024,
    "dtype": "float32",
}  # fmt: skip
EMBEDDER = {"name": "test", "weights": "1" * 64, "sample_rate": 24000, "dim": P}


def write_cache(
    folder: Path, shards: list[int], lengths: tuple[int, ...] = (6,), split: str = "train", first: int = 0
) -> Path:
    """Write a dataset whose clip i, counted from `first` over all shards, has its number in its first code and prompt.

    Code number j of the K * T codes of clip i is (i + j) % 1024. An existing dataset gets an additional split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, infos = itertools.count(first), []
    for s, n in enumerate(shards):
        with ShardWriter(folder, f"{split}-{s:06d}.tar") as shard:
            for _ in range(n):
                i = next(number)
                T = lengths[i % len(lengths)]
                codes = (np.arange(K * T).reshape(K, T) + i).astype("<u2") % 1024
                shard.add(Sample(f"clip-{i}", codes, np.full(P, i, "<f2"), {"split": split}))
        infos.append(shard.info)
    splits = Manifest.load(folder).splits if (folder / "manifest.json").exists() else {}
    Manifest(CODEC, EMBEDDER, {}, {**splits, split: infos}).save(folder)
    return folder


def clip_numbers(batch: Batch) -> list[int]:
    """Return the numbers of the clips of a batch."""
    return batch.prompts[:, 0, 0].int().tolist()
