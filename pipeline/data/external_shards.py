"""Shards of other people: our members in WebDataset tars, but no index and no manifest. Looked through once, and kept.

A folder of tars, or a pattern of names in one folder (`notes-{000..127}.tar`, `notes-*.tar`), local or from afar. What
is before the number in a shard's name is its split: `train-000.tar` is of `train`. Arrays must be as ours, uint16
[K, T] and float16 [D], with one K and one D; which codec and embedder made them, nothing in the tars can tell.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import ShardInfo, add_checksums, build_index, checksum, index_name, iter_samples
from pipeline.data.shard_cache import file_lock
from pipeline.data.storage import LocalStorage, Storage, open_storage

log = logging.getLogger(__name__)
_CODEC = ("name", "weights", "sample_rate", "frame_rate", "codebook_size")
_EMBEDDER = ("name", "weights", "sample_rate")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
_SPLIT = re.compile(r"(.*?)[-_.]?\d*\.tar")


@dataclass(frozen=True)
class ExternalSource:
    """What the user says of shards without a manifest: their codec and embedder; folder: where findings are kept."""

    codec: Mapping[str, Any]
    embedder: Mapping[str, Any]
    index_dir: Path

    def __post_init__(self) -> None:
        for part, names in (("codec", _CODEC), ("embedder", _EMBEDDER)):
            if missing := [name for name in names if name not in getattr(self, part)]:
                raise InputError(f"data.external.{part} must say {', '.join(names)}: {', '.join(missing)} is missing")


def is_glob(address: str | Path) -> bool:
    """Whether an address names shards rather than a folder."""
    name = str(address).rpartition("/")[2]
    return name.endswith((".tar", *_COMPRESSED)) or any(sign in name for sign in "*?[{")


def index_external_shards(address: str | Path, external: ExternalSource) -> tuple[Storage, Manifest, LocalStorage]:
    """Where such shards lie, a manifest of them, and where their indices are.

    The first process that asks looks through all of them; it holds for as long as names, sizes and times stay the same.
    Raises InputError where there are none, and for arrays that do not fit.
    """
    folder, _, pattern = str(address).rpartition("/") if is_glob(address) else (str(address), "", "*.tar")
    store = open_storage(folder or ".")
    sizes = _matching_sizes(store, pattern)
    if not sizes:
        for name in store.sizes():
            _refuse_compressed(store, name)
        raise InputError(f"there are no shards at {address}: give a folder of tars, or a pattern of their names")
    asked: list[Any] = [store.display_path(), sizes, dict(external.codec), dict(external.embedder)]
    if isinstance(store, LocalStorage):
        asked.append([(store.root / name).stat().st_mtime_ns for name in sizes])
    kept = LocalStorage(external.index_dir / f"foreign-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}")
    kept.check_writable()
    with file_lock(kept.root / "making", wait=True):
        if kept.size(MANIFEST_NAME) is None:
            _scan_shards(store, sizes, external, kept)
    manifest = Manifest.load(kept)
    manifest.path = store.display_path()
    return store, manifest, kept


def _matching_sizes(store: Storage, pattern: str) -> dict[str, int]:
    """Bytes of the shards of a folder that fit a pattern, by name; shards that are named one by one must be there."""
    from braceexpand import braceexpand

    found: dict[str, int] = {}
    for name in braceexpand(pattern):
        if any(sign in name for sign in "*?["):
            found |= {n: size for n, size in store.sizes().items() if fnmatch.fnmatch(n, name) and n.endswith(".tar")}
        else:
            _refuse_compressed(store, name)
            size = store.size(name)
            if size is None:
                raise InputError(f"{store.display_path(name)} is not there")
            found[name] = size
    return dict(sorted(found.items()))


def _refuse_compressed(store: Storage, name: str) -> None:
    if name.endswith(_COMPRESSED):
        raise InputError(
            f"{store.display_path(name)} is a compressed tar: shards are read in place; unpack it (gunzip, unzstd), so "
            "that its name ends in .tar"
        )


def _scan_shards(store: Storage, sizes: Mapping[str, int], external: ExternalSource, index_store: LocalStorage) -> None:
    """Write an index of each shard, and then the manifest."""
    log.info("looking through %d shards at %s, which is done once", len(sizes), store.display_path())
    shape: tuple[int, int] | None = None
    splits: dict[str, list[ShardInfo]] = {}
    for name in sizes:
        shard, where = store.view(name), store.display_path(name)
        index = build_index(shard, where)
        for sample in iter_samples(shard, index, where):
            found = (len(sample.codes), len(sample.prompt))
            shape = shape or found
            if found != shape:
                raise InputError(
                    f"{where}: {sample.key} has {found[0]} codebooks and a prompt of {found[1]} values, and those "
                    f"before it have {shape[0]} and {shape[1]}: one cache holds one shape"
                )
            if sample.codes.max(initial=0) >= external.codec["codebook_size"] or not np.isfinite(sample.prompt).all():
                size = external.codec["codebook_size"]
                raise InputError(f"{where}: {sample.key} has codes of {size} or more, or a prompt that is not finite")
        with index_store.open_atomic(index_name(name)) as file:
            np.save(file, add_checksums(index, checksum(shard)), allow_pickle=False)
        # bytes from afar are proven again each time they come
        digest = "" if isinstance(store, LocalStorage) else hashlib.sha256(shard).hexdigest()
        split = _SPLIT.fullmatch(name)
        info = ShardInfo(name, len(index), int(index[:, 1].sum()), len(shard), digest)
        splits.setdefault((split and split[1]) or "train", []).append(info)
    if shape is None:
        raise InputError(f"the shards at {store.display_path()} are empty")
    codec, embedder = {**external.codec, "codebooks": shape[0]}, {**external.embedder, "dim": shape[1]}
    Manifest(codec, embedder, {"name": "foreign"}, splits).save(index_store)
