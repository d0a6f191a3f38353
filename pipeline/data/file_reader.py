"""A file that is open for reading at any offset."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator
from typing import IO

import xxhash

from pipeline.common.errors import InputError
from pipeline.common.machine import read_at, read_into

_CHUNK = 1 << 18  # bytes: fits in a processor's cache


class FileReader:
    """An open file, read by position, from any thread.

    A file that is truncated while it is open raises an error. (A memory map would end the process with SIGBUS.)

    Attributes:
        path: for messages.
        size: bytes of the file when it was opened.
    """

    def __init__(self, file: IO[bytes], path: str) -> None:
        """Open a file again that is open; `file` may then be closed."""
        self.path = path
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from an offset. Raises InputError if the file does not have them."""
        data = read_at(self._descriptor, size, at) if 0 <= at <= at + size <= self.size else b""
        if len(data) != size:
            raise self._truncated(at + size)
        return data

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from an offset. Raises InputError if the file does not have them."""
        if read_into(self._descriptor, buffer, at) != len(buffer):
            raise self._truncated(at + len(buffer))

    def check_size(self) -> None:
        """Raise InputError if the size of the file has changed since it was opened."""
        if os.fstat(self._descriptor).st_size != self.size:
            raise self._truncated(self.size)

    def sha256(self) -> str:
        """Return the sha256 of the file, in hex."""
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def xxh3(self) -> int:
        """Return the 64-bit xxh3 of the file."""
        digest = xxhash.xxh3_64()
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.intdigest()

    def _chunks(self) -> Iterator[bytes]:
        for at in range(0, self.size, _CHUNK):
            yield self.read(at, min(_CHUNK, self.size - at))

    def _truncated(self, end: int) -> InputError:
        size = os.fstat(self._descriptor).st_size
        return InputError(f"{self.path} is truncated or was changed: it has {size} bytes, and {end} are needed")
