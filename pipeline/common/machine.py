"""What differs between Linux, macOS and Windows: the only module that asks which of them runs."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def _import_if_available(name: str) -> Any:
    """A module of the standard library that not every system has; None without it."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


fcntl, resource = _import_if_available("fcntl"), _import_if_available("resource")
IS_WINDOWS, IS_MACOS = sys.platform == "win32", sys.platform == "darwin"
# requests to stop, besides ^C; a closed terminal sends SIGHUP or, on Windows, SIGBREAK
HANGUP = getattr(signal, "SIGHUP", None)
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
# exit codes of a process that `end_process_after` has ended, that was killed, and that crashed
TIMED_OUT = -getattr(signal, "SIGALRM", -1)
KILLED = -getattr(signal, "SIGKILL", 9)
CRASHED = {-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)}
_LOCKED_BYTE = 1 << 30  # Windows locks bytes, which others then cannot read: one after the end of any lock file
_position_lock = threading.Lock()  # for files that are read without `os.pread`


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def accelerator() -> str:
    """The GPU of this machine, as PyTorch names it: `cuda:0`, or `mps` on a Mac; `cpu` without one."""
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def peak_memory() -> int:
    """The largest amount of memory that this process has had, in bytes."""
    if resource is None:
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))  # peak_wset: of Windows
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if IS_MACOS else 1024)


def open_file_limit() -> int:
    """The number of files that this process may open, once `raise_open_file_limit` has been called with it."""
    if resource is None:
        return 2**13  # of the C library
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**20 if hard == resource.RLIM_INFINITY else hard


def raise_open_file_limit(count: int) -> None:
    """Let this process open `count` files, as far as the system allows it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def lock_file(file: int | IO[bytes], *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file until it is closed, or until this process ends. On Windows every lock is exclusive.

    Raises:
        BlockingIOError: Another process has locked it, and `wait` is false.
        OSError: The file system has no locks.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    if fcntl is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return
    msvcrt = importlib.import_module("msvcrt")
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:  # LK_LOCK waits 10 s only
                if not wait:
                    raise BlockingIOError(error.errno, error.strerror) from None
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def read_at(descriptor: int, size: int, position: int) -> bytes:
    """At most `size` bytes from a position of an open file; threads may call this at the same time."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, position)
    with _position_lock:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into(descriptor: int, buffer: memoryview, position: int) -> int:
    """Fill a buffer from a position of an open file, and return the number of bytes that the file has for it."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], position)
    data = read_at(descriptor, len(buffer), position)
    buffer[: len(data)] = data
    return len(data)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut. Windows has no such call.

    Raises:
        OSError: The disk does not accept it; some file systems never do (EINVAL, ENOTSUP).
    """
    if IS_WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_owned_by_another(folder: Path) -> bool:
    """Whether a folder belongs to another user of this machine. Windows keeps temporary folders apart by itself."""
    return hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()


def process_group(pid: int) -> int:
    """The process group of a process; 0 where there are none."""
    return os.getpgid(pid) if hasattr(os, "getpgid") else 0


@contextlib.contextmanager
def end_process_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer; 0: never. It also ends where a decoder lets no other thread run."""
    if not seconds:
        yield
    elif hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        with Path(os.devnull).open("w") as nowhere:  # for the stack that it prints
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()


def allow_ending_by_timer() -> None:
    """Let `end_process_after` end this process, whatever handler its parent had."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
