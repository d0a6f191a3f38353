"""Stretches of a file, and bytes of our own, read as one file."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

Handle = io.RawIOBase | io.BytesIO
LAST = 128  # bytes
Stretch = bytes | range  # range: the bytes of the file from start to stop


class _Splice(io.RawIOBase):
    """The stretches; `io.BufferedReader` calls its `readinto`."""

    def __init__(self, handle: Handle, stretches: Sequence[Stretch], extra: int) -> None:
        self._handle, self._stretches, self._at = handle, stretches, 0
        self._ends = [*accumulate(map(len, stretches))]
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
            count = min(len(buffer), left) if 0 <= left <= LAST else 0
            buffer[:count] = bytes(count)
            self._at += count
            return count
        number = bisect_right(self._ends, self._at)
        stretch = self._stretches[number]
        skip = self._at - (self._ends[number] - len(stretch))
        count = min(len(buffer), len(stretch) - skip)
        if isinstance(stretch, bytes):
            buffer[:count] = stretch[skip : skip + count]
        else:
            self._handle.seek(stretch.start + skip)
            content = self._handle.read(count) or b""
            count = len(content)
            buffer[:count] = content
        self._at += count
        return count


class _Buffered(io.BufferedReader):
    """A decoder may seek to before the beginning: it is refused without a traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return self.tell()


def splice(handle: Handle, stretches: Sequence[Stretch], extra: int = 0) -> io.BufferedReader:
    """Open stretches of a file as one file.

    Args:
        handle: the file; its position changes with every read.
        stretches: ranges of the file's bytes, and bytes of our own, in order.
        extra: bytes by which the file seems longer: none can be read but the last ones, where decoders look for tags.
    """
    return _Buffered(_Splice(handle, stretches, extra), 1 << 16)
