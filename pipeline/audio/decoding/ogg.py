"""The streams that are chained in an Ogg file, and where each one's pages are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Stretch

CODECS = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
BLOCK = 1 << 16


class _Page(NamedTuple):
    """offset: of the page; body: of its content; end: behind it, which may be behind the file's end."""

    offset: int
    body: int
    end: int
    is_first: bool
    serial: int
    granule: int


@dataclass
class Chained:
    """A stream of sound. codec: of CODECS; pages: of this stream; granule: the last one; is_cut: its last page is."""

    codec: str
    serial: int
    pages: list[_Page] = field(default_factory=list)
    granule: int = 0
    is_cut: bool = False

    def stretches(self) -> list[Stretch]:
        """The stream alone, as a file: FLAC out of its pages, the other codecs in them."""
        if self.codec == "FLAC":  # the first packet has 9 bytes before what begins a file of FLAC
            ranges = [range(page.body, page.end) for page in self.pages]
            return [range(ranges[0].start + 9, ranges[0].stop), *ranges[1:]]
        merged: list[Stretch] = []
        for page in self.pages:
            if merged and isinstance(last := merged[-1], range) and last.stop == page.offset:
                merged[-1] = range(last.start, page.end)
            else:
                merged.append(range(page.offset, page.end))
        return merged


def streams(handle: Handle, size: int) -> list[Chained]:
    """The streams of sound that are chained in a file, in order; of streams side by side, the first."""
    chained: list[Chained] = []
    beginning = False  # among the first pages of streams side by side
    has_sound = False
    for page in _pages(handle, size):
        if page.is_first:
            if not beginning:
                has_sound = False
            beginning = True
            handle.seek(page.body)
            head = handle.read(8) or b""
            codec = next((name for mark, name in CODECS.items() if head.startswith(mark)), None)
            if codec is None or has_sound:
                continue
            has_sound = True
            chained.append(Chained(codec, page.serial))
        else:
            beginning = False
        if not chained or not has_sound or page.serial != chained[-1].serial:
            continue
        stream = chained[-1]
        if page.end > size:
            stream.is_cut = True
            continue
        stream.pages.append(page)
        stream.granule = max(stream.granule, page.granule)
    return [stream for stream in chained if stream.pages]


def _pages(handle: Handle, size: int) -> Iterator[_Page]:
    """Every page; what lies between is passed over."""
    at = 0
    while at < size:
        handle.seek(at)
        head = handle.read(27 + 255) or b""
        if len(head) < 27:
            return
        if head[:4] != b"OggS":
            at = _next_page(handle, at + 1, size)
            continue
        flags, granule, serial = struct.unpack("<Bqi", head[5:18])
        count = head[26]
        body = at + 27 + count
        end = body + sum(head[27 : 27 + count])
        yield _Page(at, body, end, bool(flags & 2), serial, granule)
        at = end


def _next_page(handle: Handle, at: int, size: int) -> int:
    while at < size:
        handle.seek(at)
        block = handle.read(BLOCK) or b""
        found = block.find(b"OggS")
        if found >= 0:
            return at + found
        at += max(1, len(block) - 3)
    return size
