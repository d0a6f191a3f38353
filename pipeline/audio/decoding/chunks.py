"""Compares the size that an uncompressed container declares for its audio with the bytes that the file contains.

Containers: WAV, RF64, BW64, Wave64, AIFF, CAF and AU. Headers are wrong in known ways: a size of 0 or of all ones
(written to a pipe, or by a recorder that crashed), 2 GiB (sox and arecord, into a pipe), or wrapped at 4 GiB.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Part

MAX_CHUNKS = 10_000  # before the audio; a file with more is not a container, and would take hours to scan
SLACK = 64  # bytes by which a declared size may exceed the real one: padding, or counted headers
UNKNOWN_SIZE = 1 << 60  # bytes; a larger declared size means unknown
TAIL = 1 << 16  # bytes after the audio that may be a damaged chunk or a tag
SOX = range(0x7EFF_FFC0, 0x8000_0001)  # sizes that sox and arecord write when they cannot seek back


class TooManyChunksError(ValueError):
    """A container has more chunks than any real file."""


class _Layout(NamedTuple):
    """The chunk layout of a container.

    Attributes:
        head: Bytes before the first chunk.
        chunk: The struct format of a chunk header: tag, then size.
        counted: Bytes of a chunk header that its size includes.
        align: Chunks start at multiples of this.
        sound: The tag of the audio chunk.
        lead: Bytes before the samples in the audio chunk.
    """

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
class SoundChunk:
    """The position and size of a container's audio.

    Attributes:
        container: The first 4 bytes.
        begin, start: Offsets of the container and of its audio.
        declared: Bytes of audio that the header declares; None if it does not.
        present: Bytes of audio in the file.
        size_at, size_format: Offset and struct format of the size in the header.
        added: Bytes that this size counts in addition to the audio.
        end: The offset after the container.
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

    def is_consistent(self) -> bool:
        """Whether the header declares the size that is present."""
        return self.declared == self.present

    def with_correct_header(self, handle: Handle) -> list[Part]:
        """Return the parts of the container with the correct size in its header and nothing after the audio.

        Raises:
            OverflowError: The size does not fit into a header of this container.
        """
        head = bytearray(_read_at(handle, self.begin, self.start - self.begin))
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


def find_sound_chunks(handle: Handle, size: int) -> list[SoundChunk]:
    """Return the audio chunks of the containers that are concatenated in a file; [] for other formats.

    Raises:
        TooManyChunksError: A container has more than MAX_CHUNKS chunks before its audio.
    """
    containers: list[SoundChunk] = []
    begin = 0
    while begin < size and (sound := _find_sound_chunk(handle, begin, size)) is not None:
        containers.append(sound)
        begin = sound.end
    return containers


def _read_at(handle: Handle, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size) or b""


def _find_sound_chunk(handle: Handle, begin: int, size: int) -> SoundChunk | None:
    head = _read_at(handle, begin, 24)
    magic = head[:4]
    if magic in (b".snd", b"dns.") and len(head) == 24:
        order = ">" if magic == b".snd" else "<"
        lead, declared = struct.unpack(f"{order}II", head[4:12])
        sound = SoundChunk(magic, begin, begin + lead, declared, 0, begin + 8, f"{order}I", 0, size)
        return _compare_with_file(handle, size, sound, None, declared == 0xFFFF_FFFF)
    layout = _LAYOUTS.get(magic)
    if layout is None or (magic in _FORMS and head[8:12] not in _FORMS[magic]):
        return None
    wide_at = 0  # offset of RF64's 64-bit size
    for at, tag, length in _chunks(handle, begin + layout.head, size, layout):
        body = at + struct.calcsize(layout.chunk)
        if tag == b"ds64":
            wide_at = body + 8
        if tag[:4] == layout.sound:
            size_at, form = at + len(tag), layout.chunk[0] + layout.chunk[-1]
            if wide_at and length == 0xFFFF_FFFF:
                size_at, form = wide_at, "<Q"
                (length,) = struct.unpack(form, _read_at(handle, wide_at, 8).ljust(8, b"\0"))
            is_unknown = length + layout.counted in (-1, (1 << 8 * struct.calcsize(form)) - 1) or length > UNKNOWN_SIZE
            declared, added = max(0, length - layout.lead), layout.lead + layout.counted
            sound = SoundChunk(magic, begin, body + layout.lead, declared, 0, size_at, form, added, size)
            return _compare_with_file(handle, size, sound, layout, is_unknown)
    return None


def _chunks(handle: Handle, at: int, size: int, layout: _Layout) -> Iterator[tuple[int, bytes, int]]:
    """Yield (offset, tag, size) of each chunk from an offset on."""
    width = struct.calcsize(layout.chunk)
    for _ in range(MAX_CHUNKS):
        if at < 0 or at + width > size or len(head := _read_at(handle, at, width)) < width:
            return
        tag, length = struct.unpack(layout.chunk, head)
        length -= layout.counted
        yield at, tag, length
        if length < 0:
            return
        at += width + length + -(length + layout.counted) % layout.align
    raise TooManyChunksError


def _compare_with_file(handle: Handle, size: int, sound: SoundChunk, tail: _Layout | None, unknown: bool) -> SoundChunk:
    """Compare the declared size with the file.

    Other chunks, another container or more audio may follow the declared end.

    `tail` is the layout of the chunks after the audio, None if there can be none; `unknown` tells whether the declared
    size means unknown.
    """
    available = max(0, size - sound.start)
    declared = sound.declared or 0
    if unknown or (declared + sound.added in SOX and declared > available):
        return replace(sound, declared=None, present=available, end=size)
    if declared > available:
        return replace(sound, present=available, end=size)
    after = sound.start + declared
    after += -(declared + sound.added) % (tail.align if tail else 1)
    end = _end_of_chunks(handle, after, size, sound.container, tail)
    if end is None:
        return replace(sound, declared=None, present=available, end=size)
    return replace(sound, present=declared, end=end)


def _end_of_chunks(handle: Handle, at: int, size: int, container: bytes, layout: _Layout | None) -> int | None:
    """Return the offset after the chunks that follow the audio; None if more audio follows instead of chunks."""
    width = struct.calcsize(layout.chunk) if layout else 8
    if size - at < width:  # padding
        return size
    if _read_at(handle, at, 4) == container:  # another file
        return at
    if layout is None:
        return None
    for offset, tag, length in _chunks(handle, at, size, layout):
        if tag[:4] == container:
            return offset
        if not re.fullmatch(rb"[\x20-\x7e\xa9]{3}[\x20-\x7e\0]", tag[:4]):
            return None if offset == at else size
        if offset == at and offset + width + length > size + layout.align and size - at > TAIL:
            return None
    return size
