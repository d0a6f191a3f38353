"""One split of a tokenized dataset, open for random access: shards are opened and checked once.

A shard that is missing, truncated (also while it is open), unreadable, modified since it was written (its checksum is
compared when it is opened) or that does not match its index is *lost*: it is logged once, counted and skipped, up to a
fraction of the split's clips. Datasets are only written by renaming files, which is safe for readers.

Letters: N samples, K codebooks, T frames.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.common import machine
from pipeline.common.errors import InputError
from pipeline.data.external_shards import ExternalSource, index_external_shards, is_glob
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.open_shard import RUN_VERIFY, OpenShard, check_counts
from pipeline.data.shard import ShardInfo, build_index, index_name, load_index, parse_index, read_index, sample_key
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.storage import LocalStorage, RemoteStorage, Storage, open_storage

log = logging.getLogger(__name__)
_INDICES_PER_READ = 256  # index files per request to a remote storage
_SYSTEM_LIMITS = {  # errors when this process has too many shards open, and the limit to raise
    errno.EMFILE: "its limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine's limit of open files (`sysctl fs.file-max`)",
}


class ShardedDataset:
    """One split of a tokenized dataset, local or remote. `len` is its number of clips.

    Attributes:
        manifest: identities of codec and embedder, and totals.
        split: name of the split.
        shards: what the manifest says of the split's shards, in order.
        clips_per_shard: int64 [shards].
        codebooks: K, the number of codebooks that are read.
        labels: names of the labels that are read with the clips; to be set before the first shard is opened.
        lost_shards: why each lost shard cannot be read, by its index in `shards`.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        codebooks: int | None = None,
        open_shards: int = 512,
        *,
        max_lost_fraction: float = 0.0,
        shard_cache: LocalShardCache | None = None,
        external: ExternalSource | None = None,
    ) -> None:
        """Open a split.

        Args:
            folder: path or address of the dataset; with `external`, also a glob of shard names.
            split: name of the split; a split that the dataset does not have is empty.
            codebooks: number of codebooks to read, all by default.
            open_shards: number of shards that stay open at least, if the system allows it; 0 keeps all.
            max_lost_fraction: fraction of the clips that may be lost with their shards.
            shard_cache: local cache of remote shards; without it, each is copied to a temporary file.
            external: codec and embedder of shards that have no manifest.

        Raises:
            InputError: the dataset is missing or does not fit, or more clips than `max_lost_fraction` are lost.
        """
        self.store, self.manifest, self.index_store = _resolve_source(folder, external)
        self.split = split
        self.shards = self.manifest.splits.get(split, [])
        self.clips_per_shard = np.array([shard.samples for shard in self.shards], np.int64)
        self.codebooks = codebooks or self.manifest.codebooks
        if self.codebooks > self.manifest.codebooks:
            raise InputError(
                f"{self.store.display_path()} has {self.manifest.codebooks} codebooks, "
                f"fewer than the {self.codebooks} requested"
            )
        self.labels: tuple[str, ...] = ()
        self.max_lost_fraction = max_lost_fraction
        self.shard_cache = shard_cache if isinstance(self.store, RemoteStorage) else None
        if self.shard_cache:  # the open shards, and as many that are prefetched
            self.shard_cache.reserve(self.shards, 2 * open_shards or len(self.shards), self.store.display_path())
        self.lost_shards: dict[int, str] = {}
        self._lock = threading.Lock()
        self._cached_lengths: np.ndarray | None = None
        self._check_files()
        self._open_shard_cached = functools.lru_cache(maxsize=_max_open_shards(self, open_shards))(self._open_shard)

    def __len__(self) -> int:
        return int(self.clips_per_shard.sum())

    def get_shard(self, number: int) -> OpenShard | None:
        """Return an open shard, or None if it is lost.

        Raises:
            InputError: more clips than `max_lost_fraction` are lost.
        """
        if number in self.lost_shards:
            return None
        try:
            shard = self._open_shard_cached(number)
            shard.reader.check_size()
        except (InputError, OSError) as error:
            self.mark_lost(number, error)
            return None
        return shard

    def lengths(self) -> np.ndarray:
        """Return the number of frames of every clip, in the order of the shards: int32 [clips].

        Lengths are read from the indices, or from the shard if its index is missing or damaged. The order of training
        depends on them, so all ranks must get the same.

        Raises:
            InputError: neither a shard nor its index can be read.
        """
        if self._cached_lengths is None and self.shard_cache:
            identity = "".join([self.store.display_path(), *(shard.sha256 for shard in self.shards)])
            name = f"lengths-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
            self._cached_lengths = self.shard_cache.get_or_create(name, self._read_lengths)
        if self._cached_lengths is None:
            self._cached_lengths = self._read_lengths()
        return self._cached_lengths

    def _read_lengths(self) -> np.ndarray:
        parts = [np.zeros(0, np.int32)]
        for first in range(0, len(self.shards), _INDICES_PER_READ):
            numbers = range(first, min(first + _INDICES_PER_READ, len(self.shards)))
            contents: dict[str, bytes] = {}
            if isinstance(self.index_store, RemoteStorage):
                with contextlib.suppress(InputError):  # reading them one by one names the file that cannot be read
                    contents = self.index_store.read_many([index_name(self.shards[number].name) for number in numbers])
            parts += [self._read_index(number, contents)[:, 1].astype(np.int32) for number in numbers]
        return np.concatenate(parts)

    def _read_index(self, number: int, contents: dict[str, bytes]) -> np.ndarray:
        """Return the index of a shard, int64 [N, 5]. contents: bytes of index files that have been read, by name."""
        info = self.shards[number]
        name = index_name(info.name)
        where, shard = self.index_store.display_path(name), self.store.display_path(info.name)
        try:
            has_content = name in contents
            stored = parse_index(contents[name], where) if has_content else read_index(self.index_store, info.name)
            if stored and not _matches_manifest(stored[0], info):
                raise InputError(f"{where} does not match its shard: remove it, and the shard is read without it")
            if stored:
                return stored[0]
        except (InputError, OSError) as error:
            if not self.shard_cache:  # which writes its own indices
                self.mark_lost(number, error)
        try:
            if self.shard_cache and isinstance(self.store, RemoteStorage):
                index = self.shard_cache.open(self.store, info)[1]
            else:
                index = build_index(self.store.open(info.name))
        except (InputError, OSError) as error:
            _raise_if_system_limit(error, shard)
            is_missing = isinstance(error, FileNotFoundError)
            raise InputError(f"{f'{shard} {_MISSING}' if is_missing else error}; {_NO_LENGTHS}") from error
        if not _matches_manifest(index, info):
            raise InputError(f"{shard} does not match its manifest; {_NO_LENGTHS}")
        return index

    def max_frames(self) -> int:
        """Return the number of frames of the longest clip; 0 if there are no clips."""
        return int(self.lengths().max(initial=0))

    def clip_key(self, shard: int, row: int) -> str:
        """Return the key of a clip; empty if its shard is lost."""
        opened = self.get_shard(shard)
        return sample_key(opened.reader, int(opened.rows[row, 0])) if opened else ""

    def num_lost_clips(self) -> int:
        """Return the number of clips in lost shards."""
        return sum(int(self.clips_per_shard[number]) for number in list(self.lost_shards))

    def prefetch(self, numbers: Sequence[int], rank: int) -> None:
        """Download remote shards in the background, in this order, unless they are cached.

        Args:
            numbers: indices of shards that will be read soon.
            rank: of this process; ranks start with different shards.
        """
        if self.shard_cache and isinstance(self.store, RemoteStorage):
            self.shard_cache.prefetch(self.store, [self.shards[n] for n in numbers if n not in self.lost_shards], rank)

    def cancel_prefetch(self) -> None:
        """Cancel downloads that have not started."""
        if self.shard_cache:
            self.shard_cache.cancel()

    def _open_shard(self, number: int) -> OpenShard:
        info = self.shards[number]
        try:
            if self.shard_cache and isinstance(self.store, RemoteStorage):
                shard, index = self.shard_cache.open(self.store, info)
            else:
                shard = self.store.open(info.name)
                check_counts(shard, info.samples, info)
                index = load_index(self.index_store, info.name, shard, info.sha256)
        except FileNotFoundError as error:
            raise InputError(f"{self.store.display_path(info.name)} {_MISSING}") from error
        return OpenShard(shard, index, info, self.manifest, self.labels)

    def _check_files(self) -> None:
        """Mark missing and truncated shards of a local dataset as lost before any work."""
        if isinstance(self.store, LocalStorage):
            sizes = self.store.sizes()
            for number, shard in enumerate(self.shards):
                if shard.name not in sizes:
                    self.mark_lost(number, InputError(f"{self.store.display_path(shard.name)} {_MISSING}"))
                elif sizes[shard.name] != shard.bytes:
                    where = self.store.display_path(shard.name)
                    self.mark_lost(
                        number, InputError(f"{where} is truncated or belongs to another dataset: {RUN_VERIFY}")
                    )

    def mark_lost(self, number: int, error: Exception) -> None:
        """Record a shard that cannot be read.

        Raises:
            InputError: more clips than `max_lost_fraction` are lost, or a limit of the system is the cause.
        """
        _raise_if_system_limit(error, self.store.display_path(self.shards[number].name))
        reason = str(error)
        with self._lock:
            if number in self.lost_shards:
                return
            self.lost_shards[number] = reason
            lost = self.num_lost_clips()
        if lost > self.max_lost_fraction * len(self):
            allowed = (
                f"; {lost} of {len(self)} clips are lost, and data.max_lost_fraction={self.max_lost_fraction:g} may be"
            )
            raise InputError(reason + (allowed if self.max_lost_fraction else ""))
        log.warning("shard skipped, with its %d clips: %s", self.clips_per_shard[number], reason)


def _resolve_source(folder: str | Path, external: ExternalSource | None) -> tuple[Storage, Manifest, Storage]:
    """Return the storage of the shards, the manifest, and the storage of the indices."""
    if is_glob(folder) and external is None:
        raise InputError(
            f"{folder} names shards without a manifest: name their codec and embedder in data.external, "
            "or give a folder"
        )
    if not is_glob(folder):
        store = open_storage(folder)
        if external is None or store.size(MANIFEST_NAME) is not None:
            return store, Manifest.load(store), store
    assert external is not None
    return index_external_shards(folder, external)


_MISSING = f"is in the manifest but does not exist: {RUN_VERIFY}"
_NO_LENGTHS = (
    "and its index, from which all ranks read the lengths of clips, is missing or damaged: restore either file"
)


def _matches_manifest(index: np.ndarray, info: ShardInfo) -> bool:
    """Return whether an index [N, 5] has as many clips and frames as the manifest says."""
    return len(index) == info.samples and int(index[:, 1].sum()) == info.frames


def _raise_if_system_limit(error: BaseException | None, where: str) -> None:
    """Raise InputError if a limit of this process or machine is the cause of an error, and not the shard."""
    while error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_LIMITS:
            raise InputError(
                f"{where} cannot be opened because this process has reached "
                f"{_SYSTEM_LIMITS[error.errno]}: raise it, or give a smaller data.shuffle_shards"
            ) from error
        error = error.__cause__


_MAX_OPEN_SHARDS = 8192  # that stay open in a process
_MAX_CACHED_CLIPS = 2**21  # of a split, whose offsets stay in memory
_OTHER_FILES = 256  # open files of a process that are not shards
# the number of shards that each split may keep open
_open_shard_counts: weakref.WeakKeyDictionary[ShardedDataset, int] = weakref.WeakKeyDictionary()


def _max_open_shards(dataset: ShardedDataset, requested: int) -> int:
    """Return how many shards a split may keep open: as requested, and more if they are local, since opening is slow.

    The system limits open files per process. The limit is raised as far as
    requested shards need it; shards beyond the request use at most half of it, over all splits.
    """
    shards, others = len(dataset.shards), sum(_open_shard_counts.values())
    limit = machine.open_file_limit()
    count = min(requested or shards, shards)
    if isinstance(dataset.store, LocalStorage):
        affordable = min(_MAX_OPEN_SHARDS, limit // 2 - _OTHER_FILES) - others
        count = max(count, min(shards, affordable, _MAX_CACHED_CLIPS * shards // max(1, len(dataset))))
    _open_shard_counts[dataset] = count = max(1, min(count, limit - _OTHER_FILES - others))
    machine.raise_open_file_limit(min(limit, _OTHER_FILES + others + count))
    return count
