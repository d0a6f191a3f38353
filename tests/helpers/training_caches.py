"""Datasets of synthetic codes that a tiny model can learn, in real shards."""

from pathlib import Path

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter

K, P = 4, 12


def write_cache(
    folder: Path,
    clips: int = 60,
    lengths: tuple[int, ...] = (12,),
    codec: str = "encodec_embedded",
    per_shard: int = 16,
    broken: tuple[str, ...] = (),
    seed: int = 0,
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
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    melodies, prompts = rng.integers(0, 1024, (8, K, max(lengths))), rng.normal(size=(8, P))
    if seed:
        melodies = np.random.default_rng(seed).integers(0, 1024, melodies.shape)
    splits: dict[str, list] = {}
    for split, count in (("train", clips * 3 // 4), ("valid", clips - clips * 3 // 4)):
        for s, first in enumerate(range(0, count, per_shard)):
            with ShardWriter(folder, f"{split}-{s:06d}.tar") as shard:
                for i in range(first, min(count, first + per_shard)):
                    codes = melodies[i % 8][:, : lengths[i % len(lengths)]].astype("<u2")
                    key, prompt = f"{split}-{i}", prompts[i % 8].astype("<f2")
                    shard.add(Sample(key, codes, prompt * np.inf if key in broken else prompt, {"split": split}))
            splits.setdefault(split, []).append(shard.info)
    identity = {"name": codec, "weights": "0" * 64, "sample_rate": 24000, "frame_rate": 75, "codebooks": K}
    identity |= {"codebook_size": 1024, "dtype": "float32"}
    embedder = {"name": "synthetic", "weights": "1" * 64, "sample_rate": 24000, "dim": P}
    Manifest(identity, embedder, {"name": "synthetic"}, splits).save(folder)
    return folder
