"""A lock that keeps a second training out of a run folder while the first one lives."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.training.distributed import World

log = logging.getLogger(__name__)
NAME = ".lock"
RENEW = 15.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which a lock of another machine no longer counts


class RunLock:
    """An exclusive lock on `RUN/.lock`, which the system releases when its process ends, however it ends.

    A network filesystem may keep the lock of a machine that crashed. So the owner renews the file's time now and then;
    a lock of another machine that is not renewed is replaced.
    """

    def __init__(self, run: Path, renew: float = RENEW, stale: float = STALE) -> None:
        self.path, self._renew, self._stale = run / NAME, renew, stale
        self._file = -1
        self._done = threading.Event()

    def acquire(self) -> None:
        """Take the lock; the folder exists. Raises InputError, naming the owner, while another process has it."""
        while not self._lock():
            owner = self._owner()
            if owner.get("host") == socket.gethostname() or self._is_renewed():
                who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
                raise InputError(
                    f"run={self.path.parent}: {who} is training in it; wait until it has ended, stop it, or give "
                    "another run=DIR"
                )
            log.warning("%s is not renewed by %s any more, and replaced", self.path, owner.get("host"))
            self.path.unlink(missing_ok=True)
        os.truncate(self._file, 0)
        os.pwrite(self._file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        threading.Thread(target=self._keep_alive, name="run-lock", daemon=True).start()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        """Give the lock back."""
        self._done.set()
        if self._file >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def _lock(self) -> bool:
        """Whether the lock is ours now."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): two trainings in one folder go unnoticed", self.path, error)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), self.path.stat()):
                self._file = file
                return True
        os.close(file)  # its owner has just removed it
        return self._lock()

    def _owner(self) -> dict[str, str | int]:
        try:
            found = json.loads(self.path.read_text())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def _is_renewed(self) -> bool:
        """Whether the lock is renewed while we wait; the clocks of machines are not compared."""
        first, end = self._renewed_at(), time.monotonic() + self._stale
        log.info("%s belongs to another machine: waiting %.0f s for a sign of life", self.path, self._stale)
        while time.monotonic() < end:
            time.sleep(min(1.0, self._stale / 10))
            if (now := self._renewed_at()) != first:
                return now > 0
        return False

    def _renewed_at(self) -> int:
        """The time of the lock's file in ns; 0 if it has been given back."""
        try:
            with self.path.open("rb") as file:  # to open it makes a network filesystem look again
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0

    def _keep_alive(self) -> None:
        while not self._done.wait(self._renew):
            with suppress(OSError):
                os.utime(self._file)


def lock_run(run: Path, world: World) -> RunLock:
    """Lock a run folder for all ranks, until the lock's `with` block ends: the first one has it. All ranks meet here.

    Raises InputError on every rank while another training has it.
    """
    lock, problem = RunLock(run), ""
    if world.is_main:
        try:
            lock.acquire()
        except InputError as error:
            problem = str(error)
    if world.all_reduce_sum([bool(problem)])[0]:
        raise InputError(problem or f"run={run}: another training has it")
    return lock
