"""A lock that prevents two trainings in the same run folder."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from pipeline.common import machine
from pipeline.common.errors import InputError
from pipeline.training.distributed import World

log = logging.getLogger(__name__)
NAME = ".lock"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0  # without a heartbeat, after which the lock of another machine is replaced


class RunLock:
    """An exclusive lock on `RUN/.lock`, which the operating system releases when its process ends, however it ends.

    A network file system may keep the lock of a machine that crashed. So the owner updates the file's modification time
    regularly (the heartbeat), and a lock of another machine without a heartbeat is replaced.
    """

    def __init__(self, run: Path, heartbeat: float = HEARTBEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.path, self._heartbeat, self._stale = run / NAME, heartbeat, stale
        self._file = -1
        self._done = threading.Event()

    def acquire(self) -> None:
        """Acquire the lock; the folder exists. Raises InputError, naming the owner, if another process has it."""
        while not self._try_lock():
            owner = self._read_owner()
            if owner.get("host") == socket.gethostname() or self._has_heartbeat():
                process = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
                raise InputError(
                    f"run={self.path.parent}: {process} is training in it; wait until it has ended, stop it, or give "
                    "another run=DIR"
                )
            log.warning("%s has no heartbeat of %s any more and is replaced", self.path, owner.get("host"))
            self.path.unlink(missing_ok=True)
        os.truncate(self._file, 0)
        os.write(self._file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self._done.set()
        if self._file >= 0:
            file, self._file = self._file, -1
            if machine.IS_WINDOWS:  # it removes no open file
                os.close(file)
                with suppress(PermissionError):  # the next owner has opened it
                    self.path.unlink(missing_ok=True)
            else:
                self.path.unlink(missing_ok=True)
                os.close(file)

    def _try_lock(self) -> bool:
        """Whether this process has locked the file."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            machine.lock_file(file, wait=False)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): two trainings in one folder would not be noticed", self.path, error)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), self.path.stat()):
                self._file = file
                return True
        os.close(file)  # its owner has just removed it
        return self._try_lock()

    def _read_owner(self) -> dict[str, str | int]:
        try:
            owner = json.loads(self.path.read_text())
            return owner if isinstance(owner, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def _has_heartbeat(self) -> bool:
        """Whether the modification time changes while we wait; the clocks of machines are not compared."""
        first, end = self._modified_at(), time.monotonic() + self._stale
        log.info("%s belongs to another machine: waiting %.0f s for its heartbeat", self.path, self._stale)
        while time.monotonic() < end:
            time.sleep(min(1.0, self._stale / 10))
            if (now := self._modified_at()) != first:
                return now > 0
        return False

    def _modified_at(self) -> int:
        """The modification time of the file in ns; 0 if it has been released."""
        try:
            with self.path.open("rb") as file:  # opening it makes a network file system update its metadata
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0

    def _beat(self) -> None:
        while not self._done.wait(self._heartbeat):
            with suppress(OSError):
                os.utime(self.path)


def lock_run(run: Path, world: World) -> RunLock:
    """Lock a run folder on the first rank, until the `with` block of the lock ends. A barrier.

    Raises:
        InputError: another training has the lock; on every rank.
    """
    lock, message = RunLock(run), ""
    if world.is_main:
        try:
            lock.acquire()
        except InputError as error:
            message = str(error)
    if world.all_reduce_sum([bool(message)])[0]:
        raise InputError(message or f"run={run}: another training has it")
    return lock
