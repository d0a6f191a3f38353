"""The size that an uncompressed container declares for its sound, and the bytes that are really there.

WAV, RF64, BW64, Wave64, AIFF, CAF and AU. Headers are wrong in known ways: a size of 0 or of all ones (written to a
pipe, or by a recorder that crashed), 2 GiB (sox and arecord, into a pipe), or wrapped at 4 GiB.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Stretch

CHUNKS = 10_000  # before the sound: more are no container, and take hours to pass over
SLACK = 64  # bytes that a declared size may exceed the real one by: padding, or headers counted in
ENDLESS = 1 << 60  # bytes: more stands for an unknown size
TAIL = 1 << 16  # bytes behind the sound that may be a damaged chunk or a tag
SOX = range(0x7EFF_FFC0, 0x8000_0001)  # sizes that sox and arecord write when they cannot seek back


class TooManyChunksError(ValueError):
    """More chunks than any real file has."""


class _Layout(NamedTuple):
    """A container's chunks. counted: bytes of a chunk's header that its size includes; lead: of the sound's chunk."""

    head: int
    chunk: str
    counted: int
    align: int
    sound: bytes
    lead: int


_LAYOUTS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), _Layout(12, "<4sI", 0, 2, b"data", 0)),
    b"RIFX": _Layout(12, ">4sI", 0, 2, b"data", 0),
    b"FORM": _Layout(12, ">4sI", 0, 2, b"SSND", 8),
    b"caff": _Layout(8, ">4sq", 0, 1, b"data", 4),
    b"riff": _Layout(40, "<16sQ", 24, 8, b"data", 0),
}
_FORMS = {
    b"FORM": (b"AIFF", b"AIFC"),
    b"RIFF": (b"WAVE",),
    b"RIFX": (b"WAVE",),
    b"RF64": (b"WAVE",),
    b"BW64": (b"WAVE",),
}


@dataclass(frozen=True)
class Sound:
    """Where a container's sound is.

    Attributes:
        container: the first 4 bytes.
        begin, start: offsets of the container and of its sound.
        declared: bytes of sound by the header; None where it declares none.
        present: bytes of sound that are there.
        size_at, size_format: offset and format of the size in the header; added: what it counts beside the sound.
        end: the offset behind the container.
    """

    container: bytes
    begin: int
    start: int
    declared: int | None
    present: int
    size_at: int
    size_format: str
    added: int
    end: int

    @property
    def is_truncated(self) -> bool:
        """Whether bytes are missing."""
        return self.declared is not None and self.declared - self.present > SLACK

    def agrees(self) -> bool:
        """Whether the header declares what is there."""
        return self.declared == self.present

    def rewritten(self, handle: Handle) -> list[Stretch]:
        """The container with the right size in its header, nothing behind its sound.

        Raises:
            OverflowError: no header of this container can declare as much.
        """
        head = bytearray(_at(handle, self.begin, self.start - self.begin))
        size = self.present + self.added
        sound = range(self.start, self.start + self.present)
        at = self.size_at - self.begin
        if self.container == b"RIFF" and size + len(head) >= 1 << 32:
            sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(head) + 28 + size, size, 0, 0)
            struct.pack_into("<I", head, at, 0xFFFF_FFFF)
            return [b"RF64\xff\xff\xff\xffWAVE" + sizes + bytes(head[12:]), sound]
        try:
            struct.pack_into(self.size_format, head, at, size)
            if self.container in (b"RIFF", b"RIFX", b"FORM"):
                struct.pack_into(self.size_format, head, 4, len(head) - 8 + self.present)
        except struct.error as error:
            raise OverflowError from error
        return [bytes(head), sound]


def sounds(handle: Handle, size: int) -> list[Sound]:
    """The containers of a file, one behind the other; none where it begins with no container of these.

    Raises:
        TooManyChunksError: a container has chunks without end.
    """
    found: list[Sound] = []
    begin = 0
    while begin < size and (sound := _sound(handle, begin, size)) is not None:
        found.append(sound)
        begin = sound.end
    return found


def _at(handle: Handle, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size) or b""


def _sound(handle: Handle, begin: int, size: int) -> Sound | None:
    head = _at(handle, begin, 24)
    magic = head[:4]
    if magic in (b".snd", b"dns.") and len(head) == 24:
        order = ">" if magic == b".snd" else "<"
        lead, declared = struct.unpack(f"{order}II", head[4:12])
        sound = Sound(magic, begin, begin + lead, declared, 0, begin + 8, f"{order}I", 0, size)
        return _measured(handle, size, sound, None, declared == 0xFFFF_FFFF)
    layout = _LAYOUTS.get(magic)
    if layout is None or (magic in _FORMS and head[8:12] not in _FORMS[magic]):
        return None
    wide_at = 0  # where RF64 has its sizes of 64 bits
    for at, tag, length in _chunks(handle, begin + layout.head, size, layout):
        body = at + struct.calcsize(layout.chunk)
        if tag == b"ds64":
            wide_at = body + 8
        if tag[:4] == layout.sound:
            size_at, form = at + len(tag), layout.chunk[0] + layout.chunk[-1]
            if wide_at and length == 0xFFFF_FFFF:
                size_at, form = wide_at, "<Q"
                (length,) = struct.unpack(form, _at(handle, wide_at, 8).ljust(8, b"\0"))
            full = length + layout.counted in (-1, (1 << 8 * struct.calcsize(form)) - 1) or length > ENDLESS
            declared, added = max(0, length - layout.lead), layout.lead + layout.counted
            sound = Sound(magic, begin, body + layout.lead, declared, 0, size_at, form, added, size)
            return _measured(handle, size, sound, layout, full)
    return None


def _chunks(handle: Handle, at: int, size: int, layout: _Layout) -> Iterator[tuple[int, bytes, int]]:
    """(offset, tag, bytes in it) of each chunk from an offset on."""
    width = struct.calcsize(layout.chunk)
    for _ in range(CHUNKS):
        if at < 0 or at + width > size or len(head := _at(handle, at, width)) < width:
            return
        tag, length = struct.unpack(layout.chunk, head)
        length -= layout.counted
        yield at, tag, length
        if length < 0:
            return
        at += width + length + -(length + layout.counted) % layout.align
    raise TooManyChunksError


def _measured(handle: Handle, size: int, sound: Sound, tail: _Layout | None, unknown: bool) -> Sound:
    """Compare a declared size with the file: what follows is other chunks, another container, or more sound."""
    there = max(0, size - sound.start)
    declared = sound.declared or 0
    if unknown or (declared + sound.added in SOX and declared > there):
        return replace(sound, declared=None, present=there, end=size)
    if declared > there:
        return replace(sound, present=there, end=size)
    behind = sound.start + declared
    behind += -(declared + sound.added) % (tail.align if tail else 1)
    end = _end_of_chunks(handle, behind, size, sound.container, tail)
    if end is None:
        return replace(sound, declared=None, present=there, end=size)
    return replace(sound, present=declared, end=end)


def _end_of_chunks(handle: Handle, at: int, size: int, container: bytes, layout: _Layout | None) -> int | None:
    """The offset behind the chunks that follow the sound; None where what follows is no chunk, but more sound."""
    width = struct.calcsize(layout.chunk) if layout else 8
    if size - at < width:  # padding
        return size
    if _at(handle, at, 4) == container:  # another file
        return at
    if layout is None:
        return None
    for place, tag, length in _chunks(handle, at, size, layout):
        if tag[:4] == container:
            return place
        if not re.fullmatch(rb"[\x20-\x7e\xa9]{3}[\x20-\x7e\0]", tag[:4]):
            return None if place == at else size
        if place == at and place + width + length > size + layout.align and size - at > TAIL:
            return None
    return size
