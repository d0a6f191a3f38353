"""Files of the page: uploads, results and examples, limited in total and per visitor.

Only these files may be named in a request, and only they are served.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.common.errors import InputError

NOT_STORED = "a file in this request was not uploaded here, or has been deleted since: upload it again"
MIN_FILE_COST = 64 * 1024  # bytes; smaller files count as this, so that the number of files is limited too


class StorageFullError(InputError):
    """A file does not fit within the limits. The message is shown to the visitor."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the store.

    Attributes:
        path: Where it is.
        owner: The visitor; None for an example, which is never deleted.
        size: In bytes.
        created: Time in seconds, by the monotonic clock.
    """

    path: Path
    owner: str | None
    size: int
    created: float

    @property
    def cost(self) -> int:
        """Bytes that the file counts as."""
        return max(self.size, MIN_FILE_COST)


class FileStore:
    """Uploads, results and examples in one folder, each in a subfolder with a random name.

    At the limit of a visitor the oldest files of this visitor are deleted; at the total limit the oldest files of the
    visitor who uses the most space. Thread-safe.

    Args:
        folder: created if it does not exist; nothing else may write into it.
        total_bytes: limit of the sum of all uploads and results.
        owner_bytes: limit of the sum for one visitor.
        delete_after_seconds: age at which uploads and results are deleted.
    """

    def __init__(self, folder: Path, total_bytes: int, owner_bytes: int, delete_after_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.delete_after_seconds = folder, delete_after_seconds
        self._total_bytes, self._owner_bytes = total_bytes, owner_bytes
        self._files: dict[str, StoredFile] = {}  # oldest first
        self._used: Counter[str] = Counter()  # bytes by owner, reservations included
        self._lock = threading.Lock()

    def find(self, path: str | os.PathLike[str]) -> Path | None:
        """Return the stored file of exactly this path; None if it does not exist or was changed."""
        file = self._files.get(os.fspath(path))
        if file is None:
            return None
        try:
            status = os.lstat(file.path)
        except OSError:
            return None
        return file.path if stat.S_ISREG(status.st_mode) and status.st_size <= file.size else None

    def add_example(self, source: Path, name: str) -> Path:
        """Copy a file of this machine into the store, and return its path. Examples count towards no limit."""
        target = self._target(name)
        shutil.copyfile(source, target)
        with self._lock:
            self._register(target, None)
        return target

    @contextmanager
    def reserve(self, owner: str, size: int) -> Iterator[None]:
        """Reserve space while an upload arrives. Raises StorageFullError if there is no space."""
        with self._lock:
            self._make_space(owner, size)
            self._used[owner] += size
        try:
            yield
        finally:
            with self._lock:
                self._release(owner, size)

    def add_upload(self, owner: str, source: IO[bytes], filename: str) -> Path:
        """Write an upload whose space is reserved, and return its path. filename: as the client sent it."""
        target = self._target(safe_filename(filename))
        try:
            with target.open("xb") as out:
                shutil.copyfileobj(source, out)
        except OSError:
            _delete(target)
            raise
        with self._lock:
            self._register(target, owner)
        return target

    def add_results(self, owner: str, files: Sequence[Path]) -> list[Path]:
        """Move files into the store under their own names, and return their paths.

        Raises StorageFullError if there is no space.
        """
        cost = sum(max(file.stat().st_size, MIN_FILE_COST) for file in files)
        with self._lock:
            self._make_space(owner, cost)
            targets = []
            for file in files:
                targets.append(self._target(file.name))
                file.replace(targets[-1])
                self._register(targets[-1], owner)
        return targets

    def delete_expired(self) -> None:
        """Delete uploads and results that are older than `delete_after_seconds`."""
        oldest = time.monotonic() - self.delete_after_seconds
        with self._lock:
            for file in [file for file in self._files.values() if file.owner is not None and file.created <= oldest]:
                self._remove(file)

    def _target(self, name: str) -> Path:
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder / name

    def _register(self, path: Path, owner: str | None) -> None:
        file = StoredFile(path, owner, path.stat().st_size, time.monotonic())
        self._files[str(path)] = file
        if owner is not None:
            self._used[owner] += file.cost

    def _make_space(self, owner: str, size: int) -> None:
        if size > min(self._owner_bytes, self._total_bytes):
            raise StorageFullError("this needs more space than the page keeps for one visitor: ask for less")
        while self._used[owner] + size > self._owner_bytes:
            self._remove_oldest([owner])
        while sum(self._used.values()) + size > self._total_bytes:
            self._remove_oldest([name for name, _ in self._used.most_common()])

    def _remove_oldest(self, owners: Sequence[str]) -> None:
        for owner in owners:  # an owner with reservations only has no files to delete
            for file in self._files.values():
                if file.owner == owner:
                    self._remove(file)
                    return
        raise StorageFullError("too many uploads at the same time: try again in a moment")

    def _remove(self, file: StoredFile) -> None:
        _delete(file.path)
        del self._files[str(file.path)]
        if file.owner is not None:
            self._release(file.owner, file.cost)

    def _release(self, owner: str, size: int) -> None:
        self._used[owner] -= size
        if self._used[owner] <= 0:
            del self._used[owner]


def safe_filename(name: str) -> str:
    """Return the last part of a file name, 200 bytes at most, without characters that a file system may refuse."""
    last = re.sub(r"[^\w.() -]", "_", re.split(r"[/\\]", name)[-1])
    return last.encode()[-200:].decode(errors="ignore").strip(". ") or "upload"


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        path.parent.rmdir()
