"""Storage of a dataset: a local folder, or any fsspec address (s3://, gs://, memory://, http(s):// for reading).

Both have the same interface over a flat folder, and both write a file completely or not at all: local files through a
temporary name, fsync and rename; remote files by one upload, which object stores show only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from pipeline.common.errors import InputError, one_line, redact
from pipeline.common.files import PARTIAL, open_atomic
from pipeline.data.file_reader import FileReader

_BUCKET_PROTOCOLS = {"s3", "gs", "gcs", "az", "abfs", "oci"}  # makedirs would create a bucket, not a folder
WRITE_TEST = "write-test"  # name of a file that is written as a test


class Storage(Protocol):
    """A flat folder of files.

    Attributes:
        address: opens the folder again with `open_storage`; it may contain a login, so it is not for messages.
    """

    address: str

    def display_path(self, name: str = "") -> str:
        """Return the path of a file (or of the folder) for messages, without a login."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every complete file by its name, sorted; empty if the folder does not exist."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None if it does not exist."""

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError if it does not exist."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of many small files by name, in one request if possible; missing files are left out."""

    def open(self, name: str) -> FileReader:
        """Open a file for reading at any offset; a remote file is first copied to an unnamed temporary file."""

    def open_atomic(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file for writing that appears under its name if the block ends without an exception."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def check_writable(self) -> None:
        """Create the folder. Raises InputError unless files can be written to it."""


def is_remote(address: str | Path) -> bool:
    """Return whether an address is opened by an fsspec protocol, usually over a network, and is not a local path."""
    return "://" in str(address) and not str(address).startswith("file://")


def open_storage(address: str | Path | Storage) -> Storage:
    """Open the folder at a path or address. Raises InputError for an address that fsspec cannot open."""
    if not isinstance(address, (str, Path)):
        return address
    if is_remote(address):
        return RemoteStorage(str(address))
    return LocalStorage(str(address).removeprefix("file://"))


def split_path(address: str | Path) -> tuple[Storage, str]:
    """Return the storage of a file's folder, and the file's name in it."""
    folder, _, name = str(address).rpartition("/")
    if not folder and str(address).startswith("/"):
        folder = "/"
    return open_storage(folder or "."), name


class LocalStorage(Storage):
    """A local or mounted folder."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.address = Path(root), str(root)

    def display_path(self, name: str = "") -> str:
        return str(self.root / name)

    def sizes(self) -> dict[str, int]:
        sizes = {}
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another process may have just removed it
                        if not entry.name.endswith(PARTIAL) and entry.is_file():
                            sizes[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        return dict(sorted(sizes.items()))

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        contents = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                contents[name] = self.read(name)
        return contents

    def open(self, name: str) -> FileReader:
        with (self.root / name).open("rb") as file:
            return FileReader(file, self.display_path(name))

    @contextlib.contextmanager
    def open_atomic(self, name: str) -> Iterator[IO[bytes]]:
        with open_atomic(self.root / name, shared=True, sync=True) as file:
            yield file

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove_partial(self, keep: tuple[str, ...] = ()) -> None:
        """Remove incomplete files of writers that died.

        Args:
            keep: names of files that may be being written now; no other file may be.
        """
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.endswith(PARTIAL) and not entry.name.startswith(tuple(f".{name}." for name in keep)):
                    (self.root / entry.name).unlink(missing_ok=True)

    def check_writable(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.open_atomic(WRITE_TEST):
                pass
            self.remove(WRITE_TEST)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"cannot write to {self.root} ({error.strerror}): give another out=") from error


class RemoteStorage(Storage):
    """A folder behind fsspec. Files are written to local disk and uploaded when they are complete."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address.rstrip("/")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address)
        except Exception as error:  # some backends connect here; each has its own exceptions
            raise InputError(f"cannot open {address}: {one_line(error)}") from error
        self.root = self.root.rstrip("/")

    def display_path(self, name: str = "") -> str:
        return redact(f"{self.address}/{name}" if name else self.address)

    @contextlib.contextmanager
    def _converted(self, verb: str, name: str = "", kind: type[Exception] = InputError) -> Iterator[None]:
        """Convert exceptions of a backend (credentials, network, permissions) to one kind, except missing files."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each backend has its own exceptions
            if isinstance(error, kind):
                raise
            raise kind(f"cannot {verb} {self.display_path(name)} ({one_line(error)})") from error

    def sizes(self) -> dict[str, int]:
        self.fs.invalidate_cache(self.root)
        try:
            with self._converted("read"):
                entries = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: sizes[name] for name in sorted(sizes) if name}

    def size(self, name: str) -> int | None:
        self.fs.invalidate_cache(self.root)
        try:
            with self._converted("read", name):
                return int(self.fs.info(f"{self.root}/{name}")["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with self._converted("read", name):
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        with self._converted("read"):
            contents = self.fs.cat([f"{self.root}/{name}" for name in names], on_error="return") if names else {}
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {path.rpartition("/")[2]: content for path, content in contents.items() if isinstance(content, bytes)}

    def open(self, name: str) -> FileReader:
        with tempfile.TemporaryFile() as file:
            file.write(self.read(name))
            file.flush()
            return FileReader(file, self.display_path(name))

    @contextlib.contextmanager
    def open_atomic(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="shard-") as file:
            yield file
            file.flush()
            with self._converted("write", name, OSError):
                self.fs.put_file(file.name, f"{self.root}/{name}")

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._converted("remove", name, OSError):
            self.fs.rm_file(f"{self.root}/{name}")

    def check_writable(self) -> None:
        try:
            if not _BUCKET_PROTOCOLS & {
                *([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol)
            }:
                self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/{WRITE_TEST}", b"")
            self.remove(WRITE_TEST)  # another process may have done so already
        except Exception as error:
            raise InputError(f"cannot write to {self.display_path()} ({one_line(error)}): give another out=") from error
