"""Where a cache lies: a local folder, or any fsspec address (s3://, gs://, memory://, http(s):// to read).

Both kinds answer the same few questions about flat names, and both put a file whole or not at all: locally through a
temporary name, fsync and rename; remotely by one upload, which object stores show only when it is complete.
The local kind goes straight to the operating system.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from pipeline.common.errors import InputError, one_line, redact
from pipeline.common.files import PARTIAL, open_atomic

_BUCKET_PROTOCOLS = {
    "s3",
    "gs",
    "gcs",
    "az",
    "abfs",
    "oci",
}  # have no folders to make, only buckets that nobody asked for
WRITE_TEST = "write-test"  # a file that only tells whether files can be written


class Storage(Protocol):
    """A flat folder of files, somewhere. address: opens it again; it may hold a login."""

    address: str

    def display_path(self, name: str = "") -> str:
        """The address of a file (or of the folder), for messages: without a login."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every whole file by its name, sorted; none if there is no such folder."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""

    def read(self, name: str) -> bytes:
        """The whole of a file; FileNotFoundError where there is none."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The whole of many small files at once, of those that are there."""

    def view(self, name: str) -> memoryview:
        """The whole of a file as a read-only buffer, mapped where that is possible."""

    def open_atomic(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file that appears under its name when the block ends well, and leaves nothing behind when it does not."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def check_writable(self) -> None:
        """InputError unless files can be written here; makes the folder."""


def is_remote(address: str | Path) -> bool:
    """Whether an address is opened over a network (or by another of fsspec's protocols) and not a path."""
    return "://" in str(address) and not str(address).startswith("file://")


def open_storage(address: str | Path | Storage) -> Storage:
    """The folder at a path or address. Raises InputError for an address that fsspec cannot open."""
    if not isinstance(address, (str, Path)):
        return address
    if is_remote(address):
        return RemoteStorage(str(address))
    return LocalStorage(str(address).removeprefix("file://"))


def split_path(address: str | Path) -> tuple[Storage, str]:
    """The folder of a file and its name in it."""
    folder, _, name = str(address).rpartition("/")
    if not folder and str(address).startswith("/"):
        folder = "/"
    return open_storage(folder or "."), name


class LocalStorage(Storage):
    """A folder of this machine (or mounted on it)."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.address = Path(root), str(root)

    def display_path(self, name: str = "") -> str:
        return str(self.root / name)

    def sizes(self) -> dict[str, int]:
        found = {}
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another part may just have removed it
                        if not entry.name.endswith(PARTIAL) and entry.is_file():
                            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    def view(self, name: str) -> memoryview:
        with (self.root / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @contextlib.contextmanager
    def open_atomic(self, name: str) -> Iterator[IO[bytes]]:
        with open_atomic(self.root / name, shared=True, sync=True) as file:
            yield file

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove_partial(self, keep: tuple[str, ...] = ()) -> None:
        """Remove what writers that died left behind of all files `but` some; only while nobody writes the others."""
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
    """A folder behind fsspec. Files are spooled to local disk and uploaded whole."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address.rstrip("/")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address)
        except Exception as error:  # some backends connect here, each with errors of its own
            raise InputError(f"cannot open {address}: {one_line(error)}") from error
        self.root = self.root.rstrip("/")

    def display_path(self, name: str = "") -> str:
        return redact(f"{self.address}/{name}" if name else self.address)

    @contextlib.contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        """What a backend raises (no credentials, no network, no right to) as InputError, but for a missing file."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each backend has errors of its own
            raise InputError(f"cannot read {self.display_path(name)} ({one_line(error)})") from error

    def sizes(self) -> dict[str, int]:
        self.fs.invalidate_cache(self.root)
        try:
            with self._reading():
                entries = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        found = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: found[name] for name in sorted(found) if name}

    def size(self, name: str) -> int | None:
        self.fs.invalidate_cache(self.root)
        try:
            with self._reading(name):
                return self.fs.info(f"{self.root}/{name}")["size"]
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with self._reading(name):
            return self.fs.cat_file(f"{self.root}/{name}")

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        with self._reading():
            found = self.fs.cat([f"{self.root}/{name}" for name in names], on_error="return") if names else {}
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {path.rpartition("/")[2]: content for path, content in found.items() if isinstance(content, bytes)}

    def view(self, name: str) -> memoryview:
        return memoryview(self.read(name))

    @contextlib.contextmanager
    def open_atomic(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="shard-") as file:
            yield file
            file.flush()
            try:
                self.fs.put_file(file.name, f"{self.root}/{name}")
            except OSError:
                raise
            except Exception as error:
                raise OSError(f"{self.display_path(name)} cannot be written ({one_line(error)})") from error

    def remove(self, name: str) -> None:
        try:
            self.fs.rm_file(f"{self.root}/{name}")
        except FileNotFoundError:
            pass
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.display_path(name)} cannot be removed ({one_line(error)})") from error

    def check_writable(self) -> None:
        try:
            if not _BUCKET_PROTOCOLS & {
                *([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol)
            }:
                self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/{WRITE_TEST}", b"")
            self.remove(WRITE_TEST)  # which another part may have done
        except Exception as error:
            raise InputError(f"cannot write to {self.display_path()} ({one_line(error)}): give another out=") from error
