"""Shards from afar: copied whole to a folder of this machine, which all its ranks share, and mapped from there.

    {sha256}.tar                 a shard, held against its sha256 when it came; who maps it has a shared lock on it
    {sha256}.index.npy           its index, made from its own headers
    {sha256}-{bytes}.coming      exclusively locked by who fetches a shard,
    {sha256}-{bytes}.data        which grows here until it is whole
    lock                         locked while room is made, and while a shard that has come takes its name: who counts
                                 what is here would else miss it under both

The system lets go of a lock when its holder ends, however it ends: so whatever nobody has locked is nobody's. What was
coming is begun anew; of what is here, that which was opened longest ago may be removed. Locks do not reach over
machines: the folder should lie on a disk of each machine's own.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.common.errors import InputError, one_line
from pipeline.data.shard import ShardInfo, add_checksums, build_index, checksum, index_name, load_index
from pipeline.data.storage import LocalStorage, RemoteStorage

log = logging.getLogger(__name__)
DOWNLOAD, _DATA = ".coming", ".data"
_FETCH_THREADS = 8  # threads of a rank that fetch ahead
_MAX_ATTEMPTS = 4  # at one shard, with pauses of 0.5, 1 and 2 s between them
_RANK_GROUP = 16  # shards ahead that ranks share out between them


class LocalShardCache:
    """The folder of copies; one object serves all caches of a run."""

    def __init__(self, folder: str | Path, gib: float) -> None:
        """gib: what the folder may hold, over all runs that share it. It is made when it is first needed."""
        self.local, self.folder = LocalStorage(folder), Path(folder)
        self.gib, self.max_bytes, self.reserved_bytes = gib, int(gib * 2**30), 0
        self._queue: collections.deque[tuple[RemoteStorage, ShardInfo]] = collections.deque()  # to be fetched ahead
        self._queued: set[str] = set()  # of these and of what is on its way, the sha256
        self._num_fetchers, self._lock = 0, threading.Lock()
        self._downloads: set[Path] = set()
        weakref.finalize(self, _abandon_downloads, self._queue, self._downloads)  # as the process ends, too
        self._warned = False

    def reserve(self, shards: Sequence[ShardInfo], max_open: int, where: str) -> None:
        """Count on room for so many shards of a cache at a time. Raises InputError where there is none."""
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
        """What lies here is believed: in a folder that anybody may make, as below /tmp, it must be ours."""
        anybodys = stat.S_ISVTX | stat.S_IWOTH
        if (
            self.folder.stat().st_uid != os.getuid()
            and self.folder.resolve().parent.stat().st_mode & anybodys == anybodys
        ):
            raise InputError(f"data.cache_dir={self.folder} belongs to another user: give a folder of your own")

    def open(self, store: RemoteStorage, shard: ShardInfo) -> tuple[memoryview, np.ndarray]:
        """A shard, mapped, and its index [N, 5]; fetched if it is not here. It stays here while it is mapped.

        Raises InputError for one that is not what the manifest says, OSError for one that cannot be had.
        """
        while True:
            found = self._map(shard)
            if found is not None:
                try:
                    return found, load_index(self.local, f"{shard.sha256}.tar", found, shard.sha256)
                except InputError as error:  # this copy went bad, not the shard
                    log.warning("%s; it is fetched again", error)
                    self._path(shard).unlink(missing_ok=True)
                    (self.folder / index_name(f"{shard.sha256}.tar")).unlink(missing_ok=True)
            self._fetch(store, shard, wait=True)

    def prefetch(self, store: RemoteStorage, shards: Sequence[ShardInfo], rank: int) -> None:
        """Begin to fetch shards in the background, the first ones first; ranks begin with different ones.

        Nobody waits for the threads that do so, not even a process that ends: it would for as long as a server is slow.
        """
        with self._lock:
            for first in range(0, len(shards), _RANK_GROUP):
                some = list(shards[first : first + _RANK_GROUP])
                for shard in some[rank % len(some) :] + some[: rank % len(some)]:
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
        """Fetch nothing more ahead."""
        with self._lock:
            self._queued -= {shard.sha256 for _, shard in self._queue}
            self._queue.clear()

    def get_or_create(self, name: str, create: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once and then kept here: by the first rank that asks, while the others wait."""
        with file_lock(self.folder / f"{name}.making", wait=True):
            if self.local.size(f"{name}.npy") is None:
                with self.local.open_atomic(f"{name}.npy") as file:
                    np.save(file, create(), allow_pickle=False)
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _map(self, shard: ShardInfo) -> memoryview | None:
        path = self._path(shard)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_nlink == 0:  # removed before it was locked
                    return None
                now = time.time_ns()  # finer than the file system's own clock
                os.utime(path, ns=(now, now))
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # keeps the file, and its lock
        except FileNotFoundError:
            return None

    def _try_to_fetch(self, store: RemoteStorage, shard: ShardInfo) -> None:
        try:
            self._fetch(store, shard, wait=False)
        except Exception as error:  # who needs the shard meets the same, and tells it
            log.debug("%s could not be fetched ahead: %s", shard.name, error)

    def _fetch(self, store: RemoteStorage, shard: ShardInfo, wait: bool) -> None:
        """Bring a shard here, unless it is; where another is at it, wait for that one, or leave it to it."""
        coming = self.folder / f"{shard.sha256}-{shard.bytes}{DOWNLOAD}"
        data = coming.with_suffix(_DATA)
        with file_lock(coming, wait) as mine:
            if not mine:
                return
            whole = False
            self._downloads.add(coming)
            try:
                if not self._path(shard).exists():
                    self._make_room()
                    index = self._download(store, shard, data)
                    with (self.folder / index_name(f"{shard.sha256}.tar")).open("wb") as file:
                        np.save(file, index, allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                    whole = True
            finally:
                with file_lock(self.folder / "lock", wait=True):
                    if whole:
                        data.rename(self._path(shard))
                    data.unlink(missing_ok=True)
                    coming.unlink(missing_ok=True)
                self._downloads.discard(coming)

    def _download(self, store: RemoteStorage, shard: ShardInfo, data: Path) -> np.ndarray:
        """What the index file of a shard holds, which is now whole, and proven, under the name of its data."""
        where = store.display_path(shard.name)
        for attempt in range(_MAX_ATTEMPTS):
            try:
                store.fs.get_file(f"{store.root}/{shard.name}", str(data))
                break
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol has errors of its own
                why = one_line(error)
                log.info("%s broke off (%s)", where, why)
                if attempt == _MAX_ATTEMPTS - 1:
                    raise OSError(f"{where} cannot be fetched ({why})") from error
                time.sleep(0.5 * 2**attempt)
        with data.open("rb") as file:
            os.fsync(file.fileno())
        found = self.local.view(data.name)
        if len(found) != shard.bytes or hashlib.sha256(found).hexdigest() != shard.sha256:
            raise InputError(f"{where} is not what its manifest says: its bytes differ (sha256)")
        return add_checksums(build_index(found, where), checksum(found))

    def _make_room(self) -> None:
        """Remove what was opened longest ago, until all that is here and on its way fits; never what is mapped."""
        with file_lock(self.folder / "lock", wait=True):
            held: list[tuple[int, int, Path]] = []  # (when opened, bytes, path)
            total = 0
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.suffix == DOWNLOAD:
                        promised = path.stem.partition("-")[2]
                        if promised.isdecimal() and not _remove_unlocked(path, path.with_suffix(_DATA)):
                            total += int(promised)
                    elif path.suffix != _DATA:
                        told = path.stat()
                        total += told.st_size
                        if path.suffix == ".tar":
                            held.append((told.st_mtime_ns, told.st_size, path))
            for _, size, path in sorted(held):
                if total <= self.max_bytes:
                    return
                if _remove_unlocked(path, self.folder / index_name(path.name)):
                    total -= size
            if total > self.max_bytes and not self._warned:
                self._warned = True
                log.warning("%s holds %.2f GiB, all in use: more than data.cache_gib", self.folder, total / 2**30)


def _abandon_downloads(waiting: collections.deque[tuple[RemoteStorage, ShardInfo]], coming: Iterable[Path]) -> None:
    """Give up what is on its way, and let nothing follow; who waits for it begins anew when this process is gone."""
    waiting.clear()
    for path in list(coming):
        for file in (path.with_suffix(_DATA), path):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the exclusive lock of the file at a path, made if need be; False at once if another has it and not wait."""
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_same_file(file, path):  # else it was renamed or removed before it was locked
                yield True
                return


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unlocked(path: Path, first: Path) -> bool:
    """Remove a file, and another before it, unless somebody has a lock on it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(file, path):
                first.unlink(missing_ok=True)
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
