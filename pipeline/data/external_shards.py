"""External shards: WebDataset tars with our members, but without index and manifest. They are scanned once.

The address is a folder of tars, or a glob of names in one folder (`notes-{000..127}.tar`, `notes-*.tar`), local or
remote. The part of a shard's name before its number is its split: `train-000.tar` belongs to `train`. Arrays must have
our format, uint16 [K, T], and float16 [D] or [N, D], with one K, one N and one D. The tars do not name their codec and
embedder.
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
from pipeline.data.labels import LabelCounter
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.open_shard import describe_shape
from pipeline.data.shard import ShardInfo, build_index, iter_samples, shard_checksum, write_index
from pipeline.data.shard_cache import file_lock
from pipeline.data.storage import LocalStorage, Storage, open_storage

log = logging.getLogger(__name__)
_CODEC = ("name", "weights", "sample_rate", "frame_rate", "codebook_size")
_EMBEDDER = ("name", "weights", "sample_rate")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
_SPLIT = re.compile(r"(.*?)[-_.]?\d*\.tar")


@dataclass(frozen=True)
class ExternalSource:
    """What the user says about shards without a manifest.

    Attributes:
        codec: identity of the codec, as in a manifest, without `codebooks`.
        embedder: identity of the embedder, as in a manifest, without `dim` and `frames`.
        index_dir: where indices and a manifest are stored.
    """

    codec: Mapping[str, Any]
    embedder: Mapping[str, Any]
    index_dir: Path

    def __post_init__(self) -> None:
        for part, names in (("codec", _CODEC), ("embedder", _EMBEDDER)):
            if missing := [name for name in names if name not in getattr(self, part)]:
                raise InputError(f"data.external.{part} needs {', '.join(names)}: {', '.join(missing)} is missing")


def is_glob(address: str | Path) -> bool:
    """Return whether an address names shards rather than a folder."""
    name = str(address).rpartition("/")[2]
    return name.endswith((".tar", *_COMPRESSED)) or any(character in name for character in "*?[{")


def index_external_shards(address: str | Path, external: ExternalSource) -> tuple[Storage, Manifest, LocalStorage]:
    """Scan external shards, unless this was done before.

    The first process scans all shards. The result is valid as long as names, sizes and modification times are the same.

    Args:
        address: folder or glob of the shards.
        external: their codec and embedder.

    Returns:
        The storage of the shards, their manifest, and the storage of their indices.

    Raises:
        InputError: there are no shards, or their arrays do not fit.
    """
    folder, _, pattern = str(address).rpartition("/") if is_glob(address) else (str(address), "", "*.tar")
    store = open_storage(folder or ".")
    sizes = _matching_sizes(store, pattern)
    if not sizes:
        for name in store.sizes():
            _refuse_compressed(store, name)
        raise InputError(f"there are no shards at {address}: give a folder of tars, or a pattern of their names")
    fingerprint: list[Any] = [store.display_path(), sizes, dict(external.codec), dict(external.embedder), "labels"]
    if isinstance(store, LocalStorage):
        fingerprint.append([(store.root / name).stat().st_mtime_ns for name in sizes])
    digest = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:32]
    index_store = LocalStorage(external.index_dir / f"external-{digest}")
    index_store.check_writable()
    with file_lock(index_store.root / "making", wait=True):
        if index_store.size(MANIFEST_NAME) is None:
            _scan_shards(store, sizes, external, index_store)
    manifest = Manifest.load(index_store)
    manifest.path = store.display_path()
    return store, manifest, index_store


def _matching_sizes(store: Storage, pattern: str) -> dict[str, int]:
    """Return the bytes of the shards of a folder that match a pattern, by name. Shards named in full must exist."""
    from braceexpand import braceexpand

    sizes: dict[str, int] = {}
    for name in braceexpand(pattern):
        if any(character in name for character in "*?["):
            sizes |= {n: size for n, size in store.sizes().items() if fnmatch.fnmatch(n, name) and n.endswith(".tar")}
        else:
            _refuse_compressed(store, name)
            size = store.size(name)
            if size is None:
                raise InputError(f"{store.display_path(name)} does not exist")
            sizes[name] = size
    return dict(sorted(sizes.items()))


def _refuse_compressed(store: Storage, name: str) -> None:
    if name.endswith(_COMPRESSED):
        raise InputError(
            f"{store.display_path(name)} is a compressed tar, but shards are read in place: unpack it (gunzip, "
            "unzstd), so that its name ends in .tar"
        )


def _scan_shards(store: Storage, sizes: Mapping[str, int], external: ExternalSource, index_store: LocalStorage) -> None:
    """Write the index of each shard, then the manifest."""
    log.info("scanning %d shards at %s, once", len(sizes), store.display_path())
    shape: tuple[int, int, int] | None = None
    splits: dict[str, list[ShardInfo]] = {}
    labels = LabelCounter()
    for name in sizes:
        shard = store.open(name)
        index, where = build_index(shard), shard.path
        for sample in iter_samples(shard, index):
            sample_shape = (len(sample.codes), *sample.prompt_vectors.shape)
            shape = shape or sample_shape
            if sample_shape != shape:
                raise InputError(
                    f"{where}: {sample.key} has {describe_shape(sample_shape)}, earlier samples have "
                    f"{describe_shape(shape)}: all samples of a dataset need the same shape"
                )
            if sample.codes.max(initial=0) >= external.codec["codebook_size"] or not np.isfinite(sample.prompt).all():
                size = external.codec["codebook_size"]
                raise InputError(f"{where}: {sample.key} has codes of {size} or more, or a prompt that is not finite")
            known = sample.metadata.get("labels")
            if isinstance(known, dict):
                labels.add({label: value for label, value in known.items() if value is not None})
        write_index(index_store, name, index, shard_checksum(shard))
        # remote shards are checked against their sha256 after each download
        digest = "" if isinstance(store, LocalStorage) else shard.sha256()
        split = _SPLIT.fullmatch(name)
        frames = int(index[:, 1].sum())
        info = ShardInfo(name=name, samples=len(index), frames=frames, bytes=shard.size, sha256=digest)
        splits.setdefault((split and split[1]) or "train", []).append(info)
    if shape is None:
        raise InputError(f"the shards at {store.display_path()} are empty")
    codebooks, vectors, values = shape
    codec, embedder = {**external.codec, "codebooks": codebooks}, {**external.embedder, "dim": values}
    embedder |= {"frames": vectors} if vectors > 1 else {}
    Manifest(codec, embedder, {"name": "external"}, splits, labels=labels.vocabularies()).save(index_store)
