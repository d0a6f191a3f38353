"""The local cache of remote shards: a folder that all ranks of a machine share.

    {sha256}.tar                 a shard, checked against its sha256 after the download; a reader keeps a shared lock
    {sha256}.index.npy           its index, built from the headers of the shard
    {sha256}-{bytes}.coming      exclusive lock of the process that downloads a shard
    {sha256}-{bytes}.data        the incomplete download
    lock                         locked while shards are evicted and while a download is renamed, so that the sum of
                                 sizes counts every shard exactly once

The system releases a lock when its process ends, however it ends, so unlocked files are not in use. An interrupted
download starts again. Among complete shards, the least recently opened are evicted. Locks do not work across machines:
the folder should be on a local disk of each machine.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.common import machine
from pipeline.common.errors import InputError, one_line
from pipeline.data.file_reader import FileReader
from pipeline.data.shard import ShardInfo, build_index, index_name, load_index, shard_checksum, write_index
from pipeline.data.storage import LocalStorage, RemoteStorage

log = logging.getLogger(__name__)
DOWNLOAD, _DATA = ".coming", ".data"  # suffixes of the lock and the content of a download
_FETCH_THREADS = 8  # per rank, for prefetching
_MAX_ATTEMPTS = 4  # per shard, with pauses of 0.5, 1 and 2 s
_RANK_GROUP = 16  # consecutive shards that ranks prefetch in different orders


class LocalShardCache:
    """The folder of downloaded shards; one object serves all datasets of a run."""

    def __init__(self, folder: str | Path, gib: float) -> None:
        """Prepare the cache.

        Args:
            folder: created when it is first needed.
            gib: limit of the folder's size in GiB, over all runs that share it.
        """
        self.local, self.folder = LocalStorage(folder), Path(folder)
        self.gib, self.max_bytes, self.reserved_bytes = gib, int(gib * 2**30), 0
        self._queue: collections.deque[tuple[RemoteStorage, ShardInfo]] = collections.deque()  # to be prefetched
        self._queued: set[str] = set()  # sha256 of shards that are queued or being prefetched
        self._num_fetchers, self._lock = 0, threading.Lock()
        self._downloads: set[Path] = set()
        weakref.finalize(self, _abandon_downloads, self._queue, self._downloads)  # also when the process ends
        self._warned = False

    def reserve(self, shards: Sequence[ShardInfo], max_open: int, where: str) -> None:
        """Reserve space for the shards of a dataset that are open at the same time.

        Args:
            shards: all shards of the split.
            max_open: number of shards that are open or prefetched at the same time.
            where: path of the dataset, for messages.

        Raises:
            InputError: the limit of the cache is too small, or its folder cannot be used.
        """
        self.local.check_writable()
        self._check_owner()
        largest = sorted((shard.bytes for shard in shards), reverse=True)[:max_open]
        self.reserved_bytes += sum(largest)
        if self.reserved_bytes > self.max_bytes:
            raise InputError(
                f"data.cache_gib={self.gib:g} is too little: with {len(largest)} shards of {where} at a time, "
                f"{self.folder} must hold {self.reserved_bytes / 2**30:.2f} GiB; give more, or a smaller "
                "data.shuffle_shards"
            )

    def _check_owner(self) -> None:
        """Raise InputError if another user may have created the folder, as below /tmp: cached files are trusted."""
        world_writable = stat.S_ISVTX | stat.S_IWOTH
        if (
            machine.is_owned_by_another(self.folder)
            and self.folder.resolve().parent.stat().st_mode & world_writable == world_writable
        ):
            raise InputError(f"data.cache_dir={self.folder} belongs to another user: give a folder that you own")

    def open(self, store: RemoteStorage, shard: ShardInfo) -> tuple[FileReader, np.ndarray]:
        """Return an open shard and its index, int64 [N, 5]; download the shard if it is not cached.

        The shard is not evicted while it is open.

        Raises:
            InputError: the shard does not match the manifest.
            OSError: the shard cannot be downloaded.
        """
        while True:
            reader = self._open_cached(shard)
            if reader is not None:
                try:
                    return reader, load_index(self.local, f"{shard.sha256}.tar", reader, shard.sha256)
                except InputError as error:  # the copy is damaged, not the shard
                    log.warning("%s; it is downloaded again", error)
                    self._path(shard).unlink(missing_ok=True)
                    (self.folder / index_name(f"{shard.sha256}.tar")).unlink(missing_ok=True)
            self._fetch(store, shard, wait=True)

    def prefetch(self, store: RemoteStorage, shards: Sequence[ShardInfo], rank: int) -> None:
        """Download shards in daemon threads, in this order; ranks start with different shards of each group.

        The threads are never joined, not even when the process ends: a slow server would delay it.
        """
        with self._lock:
            for first in range(0, len(shards), _RANK_GROUP):
                group = list(shards[first : first + _RANK_GROUP])
                for shard in group[rank % len(group) :] + group[: rank % len(group)]:
                    if shard.sha256 not in self._queued and not self._path(shard).exists():
                        self._queued.add(shard.sha256)
                        self._queue.append((store, shard))
            more = min(_FETCH_THREADS - self._num_fetchers, len(self._queue))
            self._num_fetchers += more
        for _ in range(more):
            threading.Thread(target=self._fetch_queued, name="fetch", daemon=True).start()

    def _fetch_queued(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._num_fetchers -= 1
                    return
                store, shard = self._queue.popleft()
            self._try_to_fetch(store, shard)
            with self._lock:
                self._queued.discard(shard.sha256)

    def cancel(self) -> None:
        """Cancel prefetches that have not started."""
        with self._lock:
            self._queued -= {shard.sha256 for _, shard in self._queue}
            self._queue.clear()

    def get_or_create(self, name: str, create: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array that the first rank creates and stores here, while the other ranks wait.

        Args:
            name: of the stored array, without suffix.
            create: returns the array.
        """
        with file_lock(self.folder / f"{name}.making", wait=True):
            if self.local.size(f"{name}.npy") is None:
                with self.local.open_atomic(f"{name}.npy") as file:
                    np.save(file, create(), allow_pickle=False)
        array: np.ndarray = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return array

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _open_cached(self, shard: ShardInfo) -> FileReader | None:
        path = self._path(shard)
        try:
            with path.open("rb") as file:
                machine.lock_file(file, shared=True)
                if os.fstat(file.fileno()).st_nlink == 0:  # evicted before it was locked
                    return None
                now = time.time_ns()  # more precise than the clock of the file system
                os.utime(path, ns=(now, now))
                return FileReader(file, str(path))  # keeps the lock
        except FileNotFoundError:
            return None

    def _try_to_fetch(self, store: RemoteStorage, shard: ShardInfo) -> None:
        try:
            self._fetch(store, shard, wait=False)
        except Exception as error:  # the reader that needs the shard meets the same error and reports it
            log.debug("%s could not be prefetched: %s", shard.name, error)

    def _fetch(self, store: RemoteStorage, shard: ShardInfo, wait: bool) -> None:
        """Download a shard unless it is cached. If another process downloads it: wait for it, or return immediately."""
        marker = self.folder / f"{shard.sha256}-{shard.bytes}{DOWNLOAD}"
        data = marker.with_suffix(_DATA)
        with file_lock(marker, wait) as acquired:
            if not acquired:
                return
            is_complete = False
            self._downloads.add(marker)
            try:
                if not self._path(shard).exists():
                    self._make_room()
                    content = self._download(store, shard, data)
                    write_index(self.local, f"{shard.sha256}.tar", build_index(content), shard_checksum(content))
                    is_complete = True
            finally:
                with file_lock(self.folder / "lock", wait=True):
                    if is_complete:
                        data.rename(self._path(shard))
                    data.unlink(missing_ok=True)
                    marker.unlink(missing_ok=True)
                self._downloads.discard(marker)

    def _download(self, store: RemoteStorage, shard: ShardInfo, data: Path) -> FileReader:
        """Download a shard to `data`, and check it against the manifest."""
        where = store.display_path(shard.name)
        for attempt in range(_MAX_ATTEMPTS):
            try:
                store.fs.get_file(f"{store.root}/{shard.name}", str(data))
                break
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol has its own exceptions
                reason = one_line(error)
                log.info("the download of %s failed (%s)", where, reason)
                if attempt == _MAX_ATTEMPTS - 1:
                    raise OSError(f"{where} cannot be downloaded ({reason})") from error
                time.sleep(0.5 * 2**attempt)
        with data.open("rb") as file:
            os.fsync(file.fileno())
            content = FileReader(file, where)
        if content.size != shard.bytes or content.sha256() != shard.sha256:
            raise InputError(f"{where} does not match its manifest: its bytes differ (sha256)")
        return content

    def _make_room(self) -> None:
        """Evict the least recently opened shards until the rest and all downloads fit; never those that are open."""
        with file_lock(self.folder / "lock", wait=True):
            shards: list[tuple[int, int, Path]] = []  # (time of opening, bytes, path)
            total = 0
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.suffix == DOWNLOAD:
                        expected = path.stem.partition("-")[2]
                        if expected.isdecimal() and not _remove_unlocked(path, path.with_suffix(_DATA)):
                            total += int(expected)
                    elif path.suffix != _DATA:
                        status = path.stat()
                        total += status.st_size
                        if path.suffix == ".tar":
                            shards.append((status.st_mtime_ns, status.st_size, path))
            for _, size, path in sorted(shards):
                if total <= self.max_bytes:
                    return
                if _remove_unlocked(path, self.folder / index_name(path.name)):
                    total -= size
            if total > self.max_bytes and not self._warned:
                self._warned = True
                log.warning("%s has %.2f GiB, all in use: more than data.cache_gib", self.folder, total / 2**30)


def _abandon_downloads(queue: collections.deque[tuple[RemoteStorage, ShardInfo]], downloads: Iterable[Path]) -> None:
    """Remove unfinished downloads and clear the queue. A process that waits for one starts it again."""
    queue.clear()
    for path in list(downloads):
        for file in (path.with_suffix(_DATA), path):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """Acquire an exclusive lock on a file for the duration of the block.

    Args:
        path: of the lock file, created if it does not exist.
        wait: block until the lock is free.

    Yields:
        Whether the lock was acquired; always True if `wait`.
    """
    while True:
        with path.open("ab") as file:
            try:
                machine.lock_file(file, wait=wait)
            except BlockingIOError:
                yield False
                return
            if _is_same_file(file, path):  # otherwise it was renamed or removed before it was locked
                yield True
                return


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unlocked(path: Path, first: Path) -> bool:
    """Remove `first` and then `path`, unless `path` is locked. Returns whether `path` is removed."""
    try:
        with path.open("rb") as file:
            machine.lock_file(file, wait=False)
            if _is_same_file(file, path):
                first.unlink(missing_ok=True)
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
