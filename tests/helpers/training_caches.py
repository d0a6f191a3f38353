"""Datasets of synthetic codes that a tiny model can learn, in real shards."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.labels import LabelCounter
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter

K, P = 4, 12
LABELS: dict[str, list[Any]] = {  # of each melody
    "pitch": [60, 62, 64, 65, 67, 69, 71, 72],
    "instrument_family": [*"abcdefgh"],
    "velocity": [25, 50, 75, 100, 127, 25, 50, 75],
    "mood": [["calm"], ["dark"], ["calm", "dark"], ["loud"], ["calm", "loud"], ["dark", "loud"], ["low"], ["high"]],
}


def write_cache(
    folder: Path,
    clips: int = 60,
    lengths: tuple[int, ...] = (12,),
    codec: str = "encodec_embedded",
    per_shard: int = 16,
    broken: tuple[str, ...] = (),
    seed: int = 0,
    labels: tuple[str, ...] = (),
) -> Path:
    """Write clips whose prompt says which of eight melodies they are; three quarters are for training.

    Args:
        folder: where to write.
        clips: number of clips.
        lengths: frames of the clips, in turn.
        codec: name of the codec.
        per_shard: clips per shard.
        broken: keys of clips whose prompt is not finite.
        seed: of the melodies; the prompts are the same for all seeds.
        labels: names of `LABELS` that clips have; the first clip of a shard has none.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    melodies, prompts = rng.integers(0, 1024, (8, K, max(lengths))), rng.normal(size=(8, P))
    if seed:
        melodies = np.random.default_rng(seed).integers(0, 1024, melodies.shape)
    splits: dict[str, list] = {}
    counter = LabelCounter()
    for split, count in (("train", clips * 3 // 4), ("valid", clips - clips * 3 // 4)):
        for s, first in enumerate(range(0, count, per_shard)):
            with ShardWriter(folder, f"{split}-{s:06d}.tar") as shard:
                for i in range(first, min(count, first + per_shard)):
                    codes = melodies[i % 8][:, : lengths[i % len(lengths)]].astype("<u2")
                    key, prompt = f"{split}-{i}", prompts[i % 8].astype("<f2")
                    metadata: dict[str, Any] = {"split": split, "labels": {}}
                    if i > first:
                        metadata["labels"] = {name: LABELS[name][i % 8] for name in labels}
                    counter.add(metadata["labels"])
                    shard.add(Sample(key, codes, prompt * np.inf if key in broken else prompt, metadata))
            splits.setdefault(split, []).append(shard.info)
    identity = {"name": codec, "weights": "0" * 64, "sample_rate": 24000, "frame_rate": 75, "codebooks": K}
    identity |= {"codebook_size": 1024, "dtype": "float32"}
    embedder = {"name": "synthetic", "weights": "1" * 64, "sample_rate": 24000, "dim": P}
    Manifest(identity, embedder, {"name": "synthetic"}, splits, labels=counter.vocabularies()).save(folder)
    return folder
