"""Look after a cache of shards: a folder, or s3://..., gs://..., http(s)://...

  python -m pipeline.shards verify DIR      every byte, count, key and code against the manifest; exit 1 on faults
  python -m pipeline.shards describe DIR    hours, clips, bytes an hour, labels, how much of each codebook is used
  python -m pipeline.shards listen DIR      decode clips drawn at random into wavs
  python -m pipeline.shards index DIR       write the indices again, with checksums, of shards that the manifest proves
  python -m pipeline.shards merge DIR       write the manifest once all parts of a preprocessing are finished

What people change: workers= of verify; clips=, seed=, split=, out=, device= of listen.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from pipeline.common.errors import InputError
from pipeline.common.settings import hydra_quote
from pipeline.config.cli import hydra_command

if TYPE_CHECKING:
    from pipeline.data.storage import Storage

ACTIONS = ("verify", "describe", "listen", "index", "merge")


@hydra_command("shards")
def main(cfg: DictConfig) -> int:
    """Do what the first word says, and return the exit code."""
    from pipeline.data import build_state
    from pipeline.data.stats import dataset_stats
    from pipeline.data.storage import open_storage

    if cfg.do not in ACTIONS:
        raise InputError(f"{cfg.do!r} is none of {', '.join(ACTIONS)}")
    store = open_storage(cfg.shards)
    if cfg.do == "verify":
        return _verify(store, cfg.workers)
    if cfg.do == "listen":
        return _listen(store, cfg)
    if cfg.do == "index":
        return _index(store)
    if cfg.do == "describe":
        for line in dataset_stats(store):
            print(line)
        return 0
    missing = build_state.merge(store)
    if isinstance(missing, list):
        told = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        print(
            f"{store.display_path()}: not finished, for these shards are not: {told}; run their parts again",
            file=sys.stderr,
        )
        return 1
    print(f"{store.display_path()}: merged {sum(map(len, missing.splits.values()))} shards")
    return 0


def _verify(store: Storage, workers: int | str) -> int:
    import os

    from pipeline.data.manifest import Manifest
    from pipeline.data.verify import verify

    count = 0
    for fault in verify(store, len(os.sched_getaffinity(0)) if workers == "auto" else int(workers)):
        count += 1
        print(fault)
    manifest = Manifest.load(store)
    shards, clips = sum(map(len, manifest.splits.values())), sum(map(manifest.samples, manifest.splits))
    print(f"{store.display_path()}: {count or 'no'} fault{'s' * (count != 1)} in {shards:,} shards, {clips:,} clips")
    return 1 if count else 0


def _index(store: Storage) -> int:
    from pipeline.data.manifest import Manifest
    from pipeline.data.verify import rebuild_index

    shards = [shard for part in Manifest.load(store).splits.values() for shard in part]
    for shard in shards:
        rebuild_index(store, shard)
    print(f"{store.display_path()}: wrote the indices of {len(shards)} shards")
    return 0


def _listen(store: Storage, cfg: DictConfig) -> int:
    from pathlib import Path

    import torch

    from pipeline.audio import audio_io
    from pipeline.audio.codecs import load_codec
    from pipeline.data.manifest import Manifest
    from pipeline.data.random_clips import sample_clips

    manifest = Manifest.load(store)
    codec = load_codec(manifest.codec["name"], manifest.codebooks, cfg.codec_weights, cfg.device)
    manifest.check_codec(codec.identity, manifest.codebooks)
    for sample in sample_clips(store, manifest, cfg.clips, cfg.seed, cfg.split):
        codes = torch.from_numpy(sample.codes.astype("int64"))[None].to(cfg.device)  # [1, K, T]
        wav = codec.decode(codes)[0, 0].cpu().numpy()
        file = Path(cfg.out) / f"{sample.key.replace('/', '_')}.wav"
        audio_io.write(file, wav, codec.sample_rate)
        print(
            f"{file}  {len(wav) / codec.sample_rate:.2f} s  "
            f"{sample.metadata.get('path')!r} {sample.metadata.get('labels')}"
        )
    return 0


def positional_to_overrides(words: list[str]) -> list[str]:
    """The command line as Hydra wants it: `verify DIR a=b` -> `do=verify shards='DIR' a=b`."""
    plain = [word for word in words if "=" not in word and not word.startswith("-")]
    if not words:
        return ["--help"]
    for name, word in zip(("do", "shards"), plain, strict=False):
        words = [f"{name}={hydra_quote(word)}" if other is word else other for other in words]
    return words


if __name__ == "__main__":
    sys.argv[1:] = positional_to_overrides(sys.argv[1:])
    main()
