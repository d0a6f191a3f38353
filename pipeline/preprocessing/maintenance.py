"""Actions on a finished dataset: verify, describe, decode, index, merge and convert. Each prints its result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.common.exit_codes import EXIT_FAILED
from pipeline.common.machine import num_cores
from pipeline.data import build_state
from pipeline.data.manifest import Manifest
from pipeline.data.settings import ShardsSettings
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import Storage
from pipeline.data.verify import rebuild_index, verify

DECODED_CLIPS = 8  # with clips=auto


def verify_dataset(storage: Storage, settings: ShardsSettings) -> int:
    """Print every fault of a dataset and their number, and return the exit code: 1 if there are faults."""
    count = 0
    workers = num_cores() if settings.workers == "auto" else settings.workers
    for fault in verify(storage, workers):
        count += 1
        print(fault)
    manifest = Manifest.load(storage)
    shards, clips = sum(map(len, manifest.splits.values())), sum(map(manifest.num_samples, manifest.splits))
    print(f"{storage.display_path()}: {count or 'no'} fault{'s' * (count != 1)} in {shards:,} shards, {clips:,} clips")
    return EXIT_FAILED if count else 0


def describe_dataset(storage: Storage, _: ShardsSettings) -> int:
    """Print the statistics of a dataset, and return the exit code."""
    for line in dataset_stats(storage):
        print(line)
    return 0


def rebuild_indices(storage: Storage, _: ShardsSettings) -> int:
    """Write the index of each shard again, and return the exit code."""
    shards = [shard for split in Manifest.load(storage).splits.values() for shard in split]
    for shard in shards:
        rebuild_index(storage, shard)
    print(f"{storage.display_path()}: wrote the indices of {len(shards)} shards")
    return 0


def merge_parts(storage: Storage, _: ShardsSettings) -> int:
    """Write the manifest of a dataset of finished parts, and return the exit code: 1 if shards are missing."""
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


def decode_clips(storage: Storage, settings: ShardsSettings) -> int:
    """Decode random clips into wav files, print path, duration, source and labels of each, and return the exit code."""
    import torch

    from pipeline.audio import audio_io
    from pipeline.audio.codecs import codec_of
    from pipeline.data.random_clips import sample_clips

    manifest = Manifest.load(storage)
    codec = codec_of(manifest.codec, manifest.codebooks, settings.codec_weights).open(settings.device)
    manifest.check_codec(codec.identity, manifest.codebooks)
    clips = DECODED_CLIPS if settings.clips == "auto" else settings.clips
    out = Path("decoded" if settings.out == "auto" else settings.out)
    for sample in sample_clips(storage, manifest, clips, settings.seed, settings.split):
        wav = codec.decode_clip(torch.from_numpy(sample.codes.astype("int64")))
        file = out / f"{sample.key.replace('/', '_')}.wav"
        audio_io.write(file, wav, codec.sample_rate)
        source, labels = sample.metadata.get("path"), sample.metadata.get("labels")
        print(f"{file}  {len(wav) / codec.sample_rate:.2f} s  {source!r} {labels}")
    return 0


def convert_dataset(storage: Storage, settings: ShardsSettings) -> int:
    """Write a dataset in a format of other programs, print how to read it, and return the exit code."""
    from pipeline.data.convert import convert
    from pipeline.data.formats import FORMATS

    if settings.to is None:
        raise InputError(f"to=null: expected {', '.join(FORMATS.names())}")
    if settings.out == "auto":
        raise InputError("out=auto: convert needs a folder that it creates; give out=FOLDER")
    for line in convert(storage, settings.to, Path(settings.out)):
        print(line)
    return 0


ACTIONS: dict[str, Callable[[Storage, ShardsSettings], int]] = {
    "verify": verify_dataset,
    "describe": describe_dataset,
    "decode": decode_clips,
    "index": rebuild_indices,
    "merge": merge_parts,
    "convert": convert_dataset,
}
