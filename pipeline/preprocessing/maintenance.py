"""Actions on a finished dataset: verify, describe, decode, index and merge. Each prints its result."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.common.exit_codes import EXIT_FAILED
from pipeline.data import build_state
from pipeline.data.manifest import Manifest
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import Storage
from pipeline.data.verify import rebuild_index, verify


def verify_dataset(storage: Storage, workers: int | str) -> int:
    """Print every fault of a dataset and their number.

    Args:
        storage: The folder of the dataset.
        workers: Number of processes that read shards, or "auto" for one per core.

    Returns:
        The exit code: 1 if there are faults.
    """
    count = 0
    for fault in verify(storage, len(os.sched_getaffinity(0)) if workers == "auto" else int(workers)):
        count += 1
        print(fault)
    manifest = Manifest.load(storage)
    shards, clips = sum(map(len, manifest.splits.values())), sum(map(manifest.num_samples, manifest.splits))
    print(f"{storage.display_path()}: {count or 'no'} fault{'s' * (count != 1)} in {shards:,} shards, {clips:,} clips")
    return EXIT_FAILED if count else 0


def describe_dataset(storage: Storage) -> int:
    """Print the statistics of a dataset, and return the exit code."""
    for line in dataset_stats(storage):
        print(line)
    return 0


def rebuild_indices(storage: Storage) -> int:
    """Write the index of each shard again, and return the exit code."""
    shards = [shard for split in Manifest.load(storage).splits.values() for shard in split]
    for shard in shards:
        rebuild_index(storage, shard)
    print(f"{storage.display_path()}: wrote the indices of {len(shards)} shards")
    return 0


def merge_parts(storage: Storage) -> int:
    """Write the manifest of a dataset whose parts are all finished.

    Returns:
        The exit code: 1 if shards are missing.
    """
    merged = build_state.merge(storage)
    if isinstance(merged, list):
        names = ", ".join(merged[:5]) + (f" and {len(merged) - 5} more" if len(merged) > 5 else "")
        print(
            f"{storage.display_path()}: not finished, these shards are missing: {names}; run their parts again",
            file=sys.stderr,
        )
        return EXIT_FAILED
    print(f"{storage.display_path()}: merged {sum(map(len, merged.splits.values()))} shards")
    return 0


def decode_clips(
    storage: Storage, out: Path, *, clips: int, seed: int, split: str | None, codec_weights: str | None, device: str
) -> int:
    """Decode random clips of a dataset into wav files, and print the path, duration, source and labels of each.

    Args:
        storage: The folder of the dataset.
        out: The folder of the wav files.
        clips: Number of clips.
        seed: Seed of the choice.
        split: The split to choose from, or None for all.
        codec_weights: Folder with the codec's weights, for a codec whose weights do not ship.
        device: Where to decode.

    Returns:
        The exit code.
    """
    import torch

    from pipeline.audio import audio_io
    from pipeline.audio.codecs import load_codec
    from pipeline.data.random_clips import sample_clips

    manifest = Manifest.load(storage)
    codec = load_codec(manifest.codec["name"], manifest.codebooks, codec_weights, device)
    manifest.check_codec(codec.identity, manifest.codebooks)
    for sample in sample_clips(storage, manifest, clips, seed, split):
        wav = codec.decode_clip(torch.from_numpy(sample.codes.astype("int64")))
        file = out / f"{sample.key.replace('/', '_')}.wav"
        audio_io.write(file, wav, codec.sample_rate)
        source, labels = sample.metadata.get("path"), sample.metadata.get("labels")
        print(f"{file}  {len(wav) / codec.sample_rate:.2f} s  {source!r} {labels}")
    return 0
