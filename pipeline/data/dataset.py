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
    BLOCK,
    CODES,
    NPY_HEADER,
    PROMPT,
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

log = logging.getLogger(__name__)
ALIGN = 128  # arrays in a shard begin at multiples of this
WIDEST = 2**21  # bytes of an item of all memory: numpy counts the whole in 63 bits
_TOGETHER = 256  # indices that are asked for at once
_HELD = 8  # samples of a shard that are looked at when it is opened
_LIMITS = {  # what the system refuses when this process has too many shards open, and what to raise then
    errno.EMFILE: "its limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine's limit of open files (`sysctl fs.file-max`)",
    errno.ENOMEM: "its limit of mapped files (`sysctl vm.max_map_count`) or of memory (`ulimit -v`)",
}


class _At:
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
    return np.asarray(_At(ALIGN, (2**48 // ALIGN - 1,), (ALIGN,), np.dtype(f"V{size}")))


def array_at(address: int, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """The array at an address, read-only and not copied."""
    return np.asarray(_At(address, shape, (shape[1] * dtype.itemsize, dtype.itemsize), dtype))


class MappedShard:
    """One shard, mapped. at: int64 [N, 3], a row a sample: address of its codes, frames, address of its prompt."""

    def __init__(self, shard: memoryview, index: np.ndarray, info: ShardInfo, manifest: Manifest, where: str) -> None:
        """index: [N, 5], held against the shard here. Raises InputError where the two or the manifest do not agree."""
        _check_counts(len(shard), len(index), info, where)
        self.view = shard = _aligned(shard)
        codes, frames, prompts = index[:, 0], index[:, 1], index[:, 2]
        begins = index[:, :3:2]  # [N, 2], of codes and prompts
        ends = (
            codes + manifest.codebooks * frames * CODES.itemsize,
            prompts + manifest.prompt_dim * PROMPT.itemsize,
        )
        inside = frames.min(initial=0) >= 0 and all(x.max(initial=0) <= len(shard) for x in ends)
        if not inside or begins.min(initial=BLOCK) < BLOCK or ((begins - NPY_HEADER) % BLOCK).any():
            raise InputError(f"{where} and its index do not belong together: remove the index, or restore the shard")
        self._look(index, manifest, where)
        self._base = np.frombuffer(shard, np.uint8).ctypes.data if len(shard) else 0
        self.at = index[:, :3] + np.array([self._base, 0, self._base])

    def codes_at(self, row: int) -> int:
        """The offset of a clip's codes in the shard."""
        return int(self.at[row, 0]) - self._base

    def _look(self, index: np.ndarray, manifest: Manifest, where: str) -> None:
        some = np.unique(np.linspace(0, len(index) - 1, min(_HELD, len(index))).astype(np.int64))
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
        bad_share: float = 0.0,
        copies: LocalShardCache | None = None,
        foreign: ExternalSource | None = None,
    ) -> None:
        """codebooks: how many to read of those written; bad_share: of the clips that may be lost with their shards;
        copies: where shards from afar are kept, which are else read into memory; foreign: what made shards that have
        no manifest, if folder is one of such or a pattern of their names.

        Raises InputError for a missing or unfit cache, and for one with more lost than that.
        """
        self.store, self.manifest, self.indices = _resolve_source(folder, foreign)
        self.name = split
        self.shards = self.manifest.splits.get(split, [])
        self.clips = np.array([shard.samples for shard in self.shards], np.int64)
        self.codebooks = codebooks or self.manifest.codebooks
        if self.codebooks > self.manifest.codebooks:
            raise InputError(
                f"{self.store.display_path()} has {self.manifest.codebooks} codebooks, "
                f"fewer than the {self.codebooks} requested"
            )
        self.bad_share = bad_share
        self.copies = copies if isinstance(self.store, RemoteStorage) else None
        if self.copies:  # those open, and as many on their way
            self.copies.reserve(self.shards, 2 * open_shards or len(self.shards), self.store.display_path())
        self.lost_shards: dict[int, str] = {}  # number of a shard, and what is wrong with it
        self._lock = threading.Lock()
        self._known: np.ndarray | None = None
        self._without_checksums = 0
        self._missing()
        report_sigbus()
        self._opened = functools.lru_cache(maxsize=_max_open_shards(self, open_shards))(self._open)

    def __len__(self) -> int:
        return int(self.clips.sum())

    def shard(self, number: int) -> MappedShard | None:
        """A shard, mapped; None if it is lost. Raises InputError when that is one too many."""
        if number in self.lost_shards:
            return None
        try:
            return self._opened(number)
        except (InputError, OSError) as error:
            self.mark_lost(number, error)
            return None

    def lengths(self) -> np.ndarray:
        """The frames of every clip, shard after shard: int32 [clips].

        They come from the indices, and where one is missing or bad from the shard itself: the order rests on them, and
        all ranks must come to the same. Raises InputError where a shard has neither.
        """
        if self._known is None and self.copies:
            made_of = "".join([self.store.display_path(), *(shard.sha256 for shard in self.shards)])
            name = f"lengths-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}"
            self._known = self.copies.get_or_create(name, self._lengths)
        if self._known is None:
            self._known = self._lengths()
        return self._known

    def _lengths(self) -> np.ndarray:
        parts = [np.zeros(0, np.int32)]
        for first in range(0, len(self.shards), _TOGETHER):
            some = range(first, min(first + _TOGETHER, len(self.shards)))
            texts: dict[str, bytes] = {}
            if isinstance(self.indices, RemoteStorage):
                with contextlib.suppress(InputError):  # one by one it is told which one cannot be read
                    texts = self.indices.read_many([index_name(self.shards[number].name) for number in some])
            parts += [self._index(number, texts)[:, 1].astype(np.int32) for number in some]
        if self._without_checksums:
            log.info(
                "%d indices of %s are of an older version, without checksums: opening their shards takes longer; "
                "`python -m pipeline.shards index %s` writes new ones",
                self._without_checksums, self.store.display_path(), self.store.display_path(),
            )  # fmt: skip
        return np.concatenate(parts)

    def _index(self, number: int, texts: dict[str, bytes]) -> np.ndarray:
        """The index [N, 5] of a shard, such as its manifest counts it; texts: indices that have been read, by name."""
        info = self.shards[number]
        name = index_name(info.name)
        where, shard = self.indices.display_path(name), self.store.display_path(info.name)
        try:
            index, expected = read_index(texts[name] if name in texts else self.indices.read(name), where)
            self._without_checksums += expected is None
            if _fits(index, info):
                return index
            raise InputError(f"{where} is not of its shard: remove it, and the shard is read without it")
        except FileNotFoundError:
            pass
        except (InputError, OSError) as error:
            if not self.copies:  # which have indices of their own
                self.mark_lost(number, error)
        try:
            if self.copies and isinstance(self.store, RemoteStorage):
                index = self.copies.open(self.store, info)[1]
            else:
                index = build_index(self.store.view(info.name), shard)
        except (InputError, OSError) as error:
            _refuse_at_a_limit(error, shard)
            gone = isinstance(error, FileNotFoundError)
            raise InputError(f"{f'{shard} {_NOT_THERE}' if gone else error}; {_NO_LENGTHS}") from error
        if not _fits(index, info):
            raise InputError(f"{shard} is not what its manifest says; {_NO_LENGTHS}")
        return index

    def max_frames(self) -> int:
        """The frames of the longest clip; 0 where there is none."""
        return int(self.lengths().max(initial=0))

    def key(self, shard: int, row: int) -> str:
        """The key of a clip."""
        opened = self.shard(shard)
        return sample_key(opened.view, opened.codes_at(row)) if opened else ""

    def num_lost_clips(self) -> int:
        """Clips in the shards that are lost."""
        return sum(int(self.clips[number]) for number in list(self.lost_shards))

    def prefetch(self, numbers: Sequence[int], rank: int) -> None:
        """Begin to bring shards here that will be read soon, the first ones first, if they are not."""
        if self.copies and isinstance(self.store, RemoteStorage):
            self.copies.prefetch(self.store, [self.shards[n] for n in numbers if n not in self.lost_shards], rank)

    def cancel_prefetch(self) -> None:
        """Give up what has not begun to come."""
        if self.copies:
            self.copies.cancel()

    def _open(self, number: int) -> MappedShard:
        info = self.shards[number]
        where = self.store.display_path(info.name)
        try:
            if self.copies and isinstance(self.store, RemoteStorage):
                shard, index = self.copies.open(self.store, info)
            else:
                shard = self.store.view(info.name)
                _check_counts(len(shard), info.samples, info, where)
                index = load_index(self.indices, info.name, shard, info.sha256, where)
        except FileNotFoundError as error:
            raise InputError(f"{where} {_NOT_THERE}") from error
        return MappedShard(shard, index, info, self.manifest, where)

    def _missing(self) -> None:
        """Look for every shard before any work, where a look is cheap."""
        if isinstance(self.store, LocalStorage):
            sizes = self.store.sizes()
            for number, shard in enumerate(self.shards):
                if shard.name not in sizes:
                    self.mark_lost(number, InputError(f"{self.store.display_path(shard.name)} {_NOT_THERE}"))
                elif sizes[shard.name] != shard.bytes:
                    where = self.store.display_path(shard.name)
                    self.mark_lost(number, InputError(f"{where} is cut short or another's: {_VERIFY}"))

    def mark_lost(self, number: int, error: Exception) -> None:
        """Set a shard aside. Raises InputError where that is one too many, or it is not the shard that is at fault."""
        _refuse_at_a_limit(error, self.store.display_path(self.shards[number].name))
        reason = str(error)
        with self._lock:
            if number in self.lost_shards:
                return
            self.lost_shards[number] = reason
            lost = self.num_lost_clips()
        if lost > self.bad_share * len(self):
            allowed = f"; {lost} of {len(self)} clips are lost, and data.max_lost_fraction={self.bad_share:g} may be"
            raise InputError(reason + (allowed if self.bad_share else ""))
        log.warning("shard set aside, with its %d clips: %s", self.clips[number], reason)


def _resolve_source(folder: str | Path, foreign: ExternalSource | None) -> tuple[Storage, Manifest, Storage]:
    """Where shards lie, what is in them, and where their indices are."""
    if is_glob(folder) and foreign is None:
        raise InputError(
            f"{folder} names shards without a manifest: say what made them by data.external, or give a folder"
        )
    if not is_glob(folder):
        store = open_storage(folder)
        if foreign is None or store.size(MANIFEST_NAME) is not None:
            return store, Manifest.load(store), store
    assert foreign is not None
    return index_external_shards(folder, foreign)


_VERIFY = "`python -m pipeline.shards verify` says more"
_NOT_THERE = f"is in the manifest but not there: {_VERIFY}"
_NO_LENGTHS = (
    "nor has it a whole index that tells how long its clips are, by which all ranks order them: restore either"
)


def _fits(index: np.ndarray, info: ShardInfo) -> bool:
    """Whether an index [N, 5] has the clips and frames that the manifest counts."""
    return len(index) == info.samples and int(index[:, 1].sum()) == info.frames


def _refuse_at_a_limit(error: BaseException | None, where: str) -> None:
    """Raises InputError where a shard could not be opened for a limit of this process or machine, not for its own."""
    while error:
        if isinstance(error, OSError) and error.errno in _LIMITS:
            raise InputError(
                f"{where} cannot be opened, for this process has reached {_LIMITS[error.errno]}: raise it, or give a "
                "smaller data.shuffle_shards"
            ) from error
        error = error.__cause__


def _aligned(shard: memoryview) -> memoryview:
    """The same bytes at an address that is a multiple of ALIGN: a mapped file as it is, others copied."""
    if not len(shard) or np.frombuffer(shard, np.uint8).ctypes.data % ALIGN == 0:
        return shard
    copy = mmap.mmap(-1, len(shard))
    copy[:] = shard
    return memoryview(copy).toreadonly()


_MOST, _CLIPS = 8192, 2**21  # shards that stay mapped in a process, and clips of a split whose addresses are kept so
_OTHERS = 256  # files that a process opens besides
_kept: weakref.WeakKeyDictionary[ShardedDataset, int] = (
    weakref.WeakKeyDictionary()
)  # shards that each split may keep mapped


def _max_open_shards(split: ShardedDataset, asked: int) -> int:
    """How many shards a split may keep mapped: as many as are asked for, and more that are local: opening takes time.

    Each keeps a file open, of which the machine allows so many to a process: all splits together ask for what they
    need, and take no more than half of all unasked.
    """
    shards, others = len(split.shards), sum(_kept.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 2**20 if hard == resource.RLIM_INFINITY else hard
    count = min(asked or shards, shards)
    if isinstance(split.store, LocalStorage):
        unasked = min(_MOST, limit // 2 - _OTHERS) - others
        count = max(count, min(shards, unasked, _CLIPS * shards // max(1, len(split))))
    _kept[split] = count = max(1, min(count, limit - _OTHERS - others))
    needed = min(limit, _OTHERS + others + count)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return count
