"""One split of a cache, open for random reading: shards are mapped, checked once, and known by their addresses.

A batch is gathered from many shards at once, so its clips are named by where they lie in this process's memory: all of
that memory, seen as one array of rows, is then indexed by the whole batch in a single call. Every address comes from an
index that was held against its shard when that was opened, and a shard stays mapped for as long as anybody holds it.

A shard that is missing, cut short, unreadable, changed since it was written (it is compared with its checksum once,
when it is opened) or not of its index is *lost*: told once, counted, and left out, up to a share of the split's clips
that the caller allows. A file that is cut short while it is mapped ends its reader by SIGBUS, which names the file;
caches are only ever written by renaming, which harms no reader.

Letters: N samples, K codebooks, T frames, P prompt width.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import mmap
import resource
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.external_shards import ExternalSource, index_external_shards, is_glob
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import (
    CODES_DTYPE,
    NPY_HEADER_BYTES,
    PROMPT_DTYPE,
    ShardInfo,
    build_index,
    index_name,
    iter_samples,
    load_index,
    read_index,
    sample_key,
)
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.sigbus import report_sigbus
from pipeline.data.storage import LocalStorage, RemoteStorage, Storage, open_storage
from pipeline.data.tar_headers import BLOCK

log = logging.getLogger(__name__)
ALIGN = 128  # arrays in a shard begin at multiples of this
MAX_ITEM_BYTES = 2**21  # bytes of an item of all memory: numpy counts the whole in 63 bits
_INDICES_PER_READ = 256  # indices that are asked for at once
_SAMPLES_CHECKED = 8  # samples of a shard that are looked at when it is opened
_SYSTEM_LIMITS = {  # what the system refuses when this process has too many shards open, and what to raise then
    errno.EMFILE: "its limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine's limit of open files (`sysctl fs.file-max`)",
    errno.ENOMEM: "its limit of mapped files (`sysctl vm.max_map_count`) or of memory (`ulimit -v`)",
}


class _ArrayAtAddress:
    """Something that numpy makes an array of: items at an address."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> None:
        self.__array_interface__ = {
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str,
            "version": 3,
        }


@functools.lru_cache(maxsize=256)
def memory_as_array(size: int) -> np.ndarray:
    """All memory as items of so many bytes (at most WIDEST), one begun every 128 bytes; read-only.

    The item at an address is number address // 128 - 1. Items are opaque to numpy, which so copies each in one go.
    """
    return np.asarray(_ArrayAtAddress(ALIGN, (2**48 // ALIGN - 1,), (ALIGN,), np.dtype(f"V{size}")))


def array_at(address: int, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """The array at an address, read-only and not copied."""
    return np.asarray(_ArrayAtAddress(address, shape, (shape[1] * dtype.itemsize, dtype.itemsize), dtype))


class MappedShard:
    """One shard, mapped. at: int64 [N, 3], a row a sample: address of its codes, frames, address of its prompt."""

    def __init__(self, shard: memoryview, index: np.ndarray, info: ShardInfo, manifest: Manifest, where: str) -> None:
        """index: [N, 5], held against the shard here. Raises InputError where the two or the manifest do not agree."""
        _check_counts(len(shard), len(index), info, where)
        self.view = shard = _aligned(shard)
        codes, frames, prompts = index[:, 0], index[:, 1], index[:, 2]
        begins = index[:, :3:2]  # [N, 2], of codes and prompts
        ends = (
            codes + manifest.codebooks * frames * CODES_DTYPE.itemsize,
            prompts + manifest.prompt_dim * PROMPT_DTYPE.itemsize,
        )
        inside = frames.min(initial=0) >= 0 and all(x.max(initial=0) <= len(shard) for x in ends)
        if not inside or begins.min(initial=BLOCK) < BLOCK or ((begins - NPY_HEADER_BYTES) % BLOCK).any():
            raise InputError(f"{where} and its index do not belong together: remove the index, or restore the shard")
        self._check_samples(index, manifest, where)
        self._base_address = np.frombuffer(shard, np.uint8).ctypes.data if len(shard) else 0
        self.addresses = index[:, :3] + np.array([self._base_address, 0, self._base_address])

    def codes_offset(self, row: int) -> int:
        """The offset of a clip's codes in the shard."""
        return int(self.addresses[row, 0]) - self._base_address

    def _check_samples(self, index: np.ndarray, manifest: Manifest, where: str) -> None:
        some = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLES_CHECKED, len(index))).astype(np.int64))
        for sample in iter_samples(self.view, index[some], where):
            if (len(sample.codes), len(sample.prompt)) != (manifest.codebooks, manifest.prompt_dim):
                raise InputError(
                    f"{where}: {sample.key} has {len(sample.codes)} codebooks and a prompt of {len(sample.prompt)} "
                    f"where the manifest says {manifest.codebooks} and {manifest.prompt_dim}"
                )


def _check_counts(size: int, clips: int, info: ShardInfo, where: str) -> None:
    if size != info.bytes or clips != info.samples:
        raise InputError(
            f"{where} is cut short or another's ({size} bytes and {clips} clips where the manifest says {info.bytes} "
            f"and {info.samples}): `python -m pipeline.shards verify` says more"
        )


class ShardedDataset:
    """One split of one cache. At least `open_shards` stay mapped, where the system allows it; 0: all of them."""

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
        """codebooks: how many to read of those written; bad_share: of the clips that may be lost with their shards;
        copies: where shards from afar are kept, which are else read into memory; foreign: what made shards that have
        no manifest, if folder is one of such or a pattern of their names.

        Raises InputError for a missing or unfit cache, and for one with more lost than that.
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
        self.max_lost_fraction = max_lost_fraction
        self.shard_cache = shard_cache if isinstance(self.store, RemoteStorage) else None
        if self.shard_cache:  # those open, and as many on their way
            self.shard_cache.reserve(self.shards, 2 * open_shards or len(self.shards), self.store.display_path())
        self.lost_shards: dict[int, str] = {}  # number of a shard, and what is wrong with it
        self._lock = threading.Lock()
        self._cached_lengths: np.ndarray | None = None
        self._without_checksums = 0
        self._check_files()
        report_sigbus()
        self._map_shard_cached = functools.lru_cache(maxsize=_max_open_shards(self, open_shards))(self._map_shard)

    def __len__(self) -> int:
        return int(self.clips_per_shard.sum())

    def get_shard(self, number: int) -> MappedShard | None:
        """A shard, mapped; None if it is lost. Raises InputError when that is one too many."""
        if number in self.lost_shards:
            return None
        try:
            return self._map_shard_cached(number)
        except (InputError, OSError) as error:
            self.mark_lost(number, error)
            return None

    def lengths(self) -> np.ndarray:
        """The frames of every clip, shard after shard: int32 [clips].

        They come from the indices, and where one is missing or bad from the shard itself: the order rests on them, and
        all ranks must come to the same. Raises InputError where a shard has neither.
        """
        if self._cached_lengths is None and self.shard_cache:
            made_of = "".join([self.store.display_path(), *(shard.sha256 for shard in self.shards)])
            name = f"lengths-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}"
            self._cached_lengths = self.shard_cache.get_or_create(name, self._read_lengths)
        if self._cached_lengths is None:
            self._cached_lengths = self._read_lengths()
        return self._cached_lengths

    def _read_lengths(self) -> np.ndarray:
        parts = [np.zeros(0, np.int32)]
        for first in range(0, len(self.shards), _INDICES_PER_READ):
            some = range(first, min(first + _INDICES_PER_READ, len(self.shards)))
            texts: dict[str, bytes] = {}
            if isinstance(self.index_store, RemoteStorage):
                with contextlib.suppress(InputError):  # one by one it is told which one cannot be read
                    texts = self.index_store.read_many([index_name(self.shards[number].name) for number in some])
            parts += [self._read_index(number, texts)[:, 1].astype(np.int32) for number in some]
        if self._without_checksums:
            log.info(
                "%d indices of %s are of an older version, without checksums: opening their shards takes longer; "
                "`python -m pipeline.shards index %s` writes new ones",
                self._without_checksums, self.store.display_path(), self.store.display_path(),
            )  # fmt: skip
        return np.concatenate(parts)

    def _read_index(self, number: int, texts: dict[str, bytes]) -> np.ndarray:
        """The index [N, 5] of a shard, such as its manifest counts it; texts: indices that have been read, by name."""
        info = self.shards[number]
        name = index_name(info.name)
        where, shard = self.index_store.display_path(name), self.store.display_path(info.name)
        try:
            index, expected = read_index(texts[name] if name in texts else self.index_store.read(name), where)
            self._without_checksums += expected is None
            if _matches_manifest(index, info):
                return index
            raise InputError(f"{where} is not of its shard: remove it, and the shard is read without it")
        except FileNotFoundError:
            pass
        except (InputError, OSError) as error:
            if not self.shard_cache:  # which have indices of their own
                self.mark_lost(number, error)
        try:
            if self.shard_cache and isinstance(self.store, RemoteStorage):
                index = self.shard_cache.open(self.store, info)[1]
            else:
                index = build_index(self.store.view(info.name), shard)
        except (InputError, OSError) as error:
            _raise_if_system_limit(error, shard)
            gone = isinstance(error, FileNotFoundError)
            raise InputError(f"{f'{shard} {_MISSING}' if gone else error}; {_NO_LENGTHS}") from error
        if not _matches_manifest(index, info):
            raise InputError(f"{shard} is not what its manifest says; {_NO_LENGTHS}")
        return index

    def max_frames(self) -> int:
        """The frames of the longest clip; 0 where there is none."""
        return int(self.lengths().max(initial=0))

    def clip_key(self, shard: int, row: int) -> str:
        """The key of a clip."""
        opened = self.get_shard(shard)
        return sample_key(opened.view, opened.codes_offset(row)) if opened else ""

    def num_lost_clips(self) -> int:
        """Clips in the shards that are lost."""
        return sum(int(self.clips_per_shard[number]) for number in list(self.lost_shards))

    def prefetch(self, numbers: Sequence[int], rank: int) -> None:
        """Begin to bring shards here that will be read soon, the first ones first, if they are not."""
        if self.shard_cache and isinstance(self.store, RemoteStorage):
            self.shard_cache.prefetch(self.store, [self.shards[n] for n in numbers if n not in self.lost_shards], rank)

    def cancel_prefetch(self) -> None:
        """Give up what has not begun to come."""
        if self.shard_cache:
            self.shard_cache.cancel()

    def _map_shard(self, number: int) -> MappedShard:
        info = self.shards[number]
        where = self.store.display_path(info.name)
        try:
            if self.shard_cache and isinstance(self.store, RemoteStorage):
                shard, index = self.shard_cache.open(self.store, info)
            else:
                shard = self.store.view(info.name)
                _check_counts(len(shard), info.samples, info, where)
                index = load_index(self.index_store, info.name, shard, info.sha256, where)
        except FileNotFoundError as error:
            raise InputError(f"{where} {_MISSING}") from error
        return MappedShard(shard, index, info, self.manifest, where)

    def _check_files(self) -> None:
        """Look for every shard before any work, where a look is cheap."""
        if isinstance(self.store, LocalStorage):
            sizes = self.store.sizes()
            for number, shard in enumerate(self.shards):
                if shard.name not in sizes:
                    self.mark_lost(number, InputError(f"{self.store.display_path(shard.name)} {_MISSING}"))
                elif sizes[shard.name] != shard.bytes:
                    where = self.store.display_path(shard.name)
                    self.mark_lost(number, InputError(f"{where} is cut short or another's: {_RUN_VERIFY}"))

    def mark_lost(self, number: int, error: Exception) -> None:
        """Set a shard aside. Raises InputError where that is one too many, or it is not the shard that is at fault."""
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
        log.warning("shard set aside, with its %d clips: %s", self.clips_per_shard[number], reason)


def _resolve_source(folder: str | Path, external: ExternalSource | None) -> tuple[Storage, Manifest, Storage]:
    """Where shards lie, what is in them, and where their indices are."""
    if is_glob(folder) and external is None:
        raise InputError(
            f"{folder} names shards without a manifest: say what made them by data.external, or give a folder"
        )
    if not is_glob(folder):
        store = open_storage(folder)
        if external is None or store.size(MANIFEST_NAME) is not None:
            return store, Manifest.load(store), store
    assert external is not None
    return index_external_shards(folder, external)


_RUN_VERIFY = "`python -m pipeline.shards verify` says more"
_MISSING = f"is in the manifest but not there: {_RUN_VERIFY}"
_NO_LENGTHS = (
    "nor has it a whole index that tells how long its clips are, by which all ranks order them: restore either"
)


def _matches_manifest(index: np.ndarray, info: ShardInfo) -> bool:
    """Whether an index [N, 5] has the clips and frames that the manifest counts."""
    return len(index) == info.samples and int(index[:, 1].sum()) == info.frames


def _raise_if_system_limit(error: BaseException | None, where: str) -> None:
    """Raises InputError where a shard could not be opened for a limit of this process or machine, not for its own."""
    while error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_LIMITS:
            raise InputError(
                f"{where} cannot be opened, for this process has reached "
                f"{_SYSTEM_LIMITS[error.errno]}: raise it, or give a smaller data.shuffle_shards"
            ) from error
        error = error.__cause__


def _aligned(shard: memoryview) -> memoryview:
    """The same bytes at an address that is a multiple of ALIGN: a mapped file as it is, others copied."""
    if not len(shard) or np.frombuffer(shard, np.uint8).ctypes.data % ALIGN == 0:
        return shard
    copy = mmap.mmap(-1, len(shard))
    copy[:] = shard
    return memoryview(copy).toreadonly()


_MAX_OPEN_SHARDS, _MAX_CACHED_CLIPS = (
    8192,
    2**21,
)  # shards that stay mapped in a process, and clips of a split whose addresses are kept so
_OTHER_FILES = 256  # files that a process opens besides
_open_shard_counts: weakref.WeakKeyDictionary[ShardedDataset, int] = (
    weakref.WeakKeyDictionary()
)  # shards that each split may keep mapped


def _max_open_shards(dataset: ShardedDataset, requested: int) -> int:
    """How many shards a split may keep mapped: as many as are asked for, and more that are local: opening takes time.

    Each keeps a file open, of which the machine allows so many to a process: all splits together ask for what they
    need, and take no more than half of all unasked.
    """
    shards, others = len(dataset.shards), sum(_open_shard_counts.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 2**20 if hard == resource.RLIM_INFINITY else hard
    count = min(requested or shards, shards)
    if isinstance(dataset.store, LocalStorage):
        unasked = min(_MAX_OPEN_SHARDS, limit // 2 - _OTHER_FILES) - others
        count = max(count, min(shards, unasked, _MAX_CACHED_CLIPS * shards // max(1, len(dataset))))
    _open_shard_counts[dataset] = count = max(1, min(count, limit - _OTHER_FILES - others))
    needed = min(limit, _OTHER_FILES + others + count)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return count
