"""Finds the streams that are chained in an Ogg file, and the pages of each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Part

CODECS = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
BLOCK = 1 << 16


class _Page(NamedTuple):
    """A page. offset: of the page; body: of its content; end: after it, possibly past the end of the file."""

    offset: int
    body: int
    end: int
    is_first: bool
    serial: int
    granule: int


@dataclass
class OggStream:
    """An audio stream. codec: one of CODECS; granule: the last position; is_cut: whether the last page is cut."""

    codec: str
    serial: int
    pages: list[_Page] = field(default_factory=list)
    granule: int = 0
    is_cut: bool = False

    def parts(self) -> list[Part]:
        """Return the parts of a file with this stream alone: FLAC without pages, other codecs with their pages."""
        if self.codec == "FLAC":  # the first packet has 9 bytes before the start of the FLAC file
            ranges = [range(page.body, page.end) for page in self.pages]
            return [range(ranges[0].start + 9, ranges[0].stop), *ranges[1:]]
        merged: list[Part] = []
        for page in self.pages:
            if merged and isinstance(last := merged[-1], range) and last.stop == page.offset:
                merged[-1] = range(last.start, page.end)
            else:
                merged.append(range(page.offset, page.end))
        return merged


def find_streams(handle: Handle, size: int) -> list[OggStream]:
    """Return the audio streams that are chained in a file, in order; of multiplexed streams, the first."""
    chained: list[OggStream] = []
    in_headers = False  # among the first pages of multiplexed streams
    has_sound = False
    for page in _pages(handle, size):
        if page.is_first:
            if not in_headers:
                has_sound = False
            in_headers = True
            handle.seek(page.body)
            head = handle.read(8) or b""
            codec = next((name for mark, name in CODECS.items() if head.startswith(mark)), None)
            if codec is None or has_sound:
                continue
            has_sound = True
            chained.append(OggStream(codec, page.serial))
        else:
            in_headers = False
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
    """Yield every page; skip bytes between pages."""
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
    """Return the offset of the next page, or `size`."""
    while at < size:
        handle.seek(at)
        block = handle.read(BLOCK) or b""
        index = block.find(b"OggS")
        if index >= 0:
            return at + index
        at += max(1, len(block) - 3)
    return size
