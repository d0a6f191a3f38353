"""Ranges of a file and literal bytes, read as one file."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

Handle = io.RawIOBase | io.BytesIO
READABLE_TAIL = 128  # bytes at the end of `extra` that can be read
Part = bytes | range  # literal bytes, or the bytes of the file from start to stop


class _Splice(io.RawIOBase):
    """The raw file below `io.BufferedReader`, which calls `readinto`."""

    def __init__(self, handle: Handle, parts: Sequence[Part], extra: int) -> None:
        self._handle, self._parts, self._at = handle, parts, 0
        self._ends = [*accumulate(map(len, parts))]
        self._size = self._ends[-1] if self._ends else 0
        self._extra = extra

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size + self._extra}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if self._at >= self._size:
            left = self._size + self._extra - self._at
            count = min(len(buffer), left) if 0 <= left <= READABLE_TAIL else 0
            buffer[:count] = bytes(count)
            self._at += count
            return count
        number = bisect_right(self._ends, self._at)
        part = self._parts[number]
        skip = self._at - (self._ends[number] - len(part))
        count = min(len(buffer), len(part) - skip)
        if isinstance(part, bytes):
            buffer[:count] = part[skip : skip + count]
        else:
            self._handle.seek(part.start + skip)
            content = self._handle.read(count) or b""
            count = len(content)
            buffer[:count] = content
        self._at += count
        return count


class _SeekSafeReader(io.BufferedReader):
    """A reader whose invalid `seek` returns the old position; an exception would print a traceback in a callback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return self.tell()


def splice(handle: Handle, parts: Sequence[Part], extra: int = 0) -> io.BufferedReader:
    """Open parts as one file.

    Args:
        handle: The file; its position changes with every read.
        parts: Ranges of the file and literal bytes, in order.
        extra: Bytes by which the result appears longer. Only the last READABLE_TAIL can be read, where decoders look
            for tags.
    """
    return _SeekSafeReader(_Splice(handle, parts, extra), 1 << 16)
