"""MPEG audio (MP3, MP2) walked frame by frame: how long it is, and where its frames are.

A header's estimate is never trusted: frames are counted. A file may hold several streams, one behind the other
(concatenated MP3s); each begins with a frame of tags (Xing, Info, VBRI), or where the sample rate or the number of
channels changes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Stretch

WINDOW = 1 << 20  # bytes read at a time
DECODER_DELAY = 529  # samples by which a decoder lags
_KBITS = {  # version 1 or 2, layer: kbit/s
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by the version's bits


class _Header(NamedTuple):
    """kind: what is the same in every frame of a stream; size: bytes, 0 where it is free; tag_at: offsets of a tag."""

    kind: tuple[int, int, int, int]  # version's bits, layer, rate, channels
    samples: int
    size: int
    slot: int  # bytes of padding
    tag_at: tuple[int, ...]


@lru_cache(1 << 12)
def _header(word: int) -> _Header | None:
    """What 4 bytes say, as a number; None where they are no header. (The last 6 bits are left out of it.)"""
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    kbits, rate, padding, mono = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1, word >> 6 & 3 == 3
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or kbits == 15 or rate == 3:
        return None
    hz, low = _RATES[version][rate], version != 3
    bits = 1000 * _KBITS[2 if low else 1, layer][kbits]
    slot = 4 if layer == 1 else 1
    samples = 384 if layer == 1 else 576 if layer == 3 and low else 1152
    size = (samples * bits // 8 // hz // slot + padding) * slot if bits else 0
    side = (9 if mono else 17) if low else (17 if mono else 32)
    protected = not word >> 16 & 1
    tag_at = () if layer != 3 else (4 + side, 6 + side) if protected else (4 + side,)
    return _Header((version, layer, hz, 1 if mono else 2), samples, size, slot * padding, tag_at)


@dataclass
class Stream:
    """Frames of one kind, in order.

    Attributes:
        rate, channels: of the sound; samples: of a frame.
        runs: (offset, offset behind) of bytes without a gap between frames.
        offsets: of each frame.
        declared: frames by the tag, None where none says so.
        delay, padding: samples that the encoder added before and behind, by the tag.
        has_delay: whether the tag says so; has_vbri: whether its tag is VBRI, which libsndfile takes for sound.
    """

    rate: int
    channels: int
    samples: int
    runs: list[list[int]] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    declared: int | None = None
    delay: int = 0
    padding: int = 0
    has_delay: bool = False
    has_vbri: bool = False

    @property
    def skip(self) -> int:
        """Samples per channel that a decoder yields before the sound."""
        return self.delay + DECODER_DELAY if self.has_delay else 0

    @property
    def frames(self) -> int:
        """Samples per channel of the sound."""
        behind = max(0, self.padding - DECODER_DELAY) if self.has_delay and not self.is_truncated else 0
        return max(0, len(self.offsets) * self.samples - self.skip - behind)

    @property
    def is_truncated(self) -> bool:
        """Whether frames that the tag declares are missing at the end, rather than lost in gaps.

        Some encoders count the tag's own frame.
        """
        gaps = sum(start - end for (_, end), (start, _) in pairwise(self.runs))
        lost = 2 * gaps * len(self.offsets) // self.size + 2 * (len(self.runs) - 1) if self.runs else 0
        return self.declared is not None and self.declared > len(self.offsets) + 1 + lost

    @property
    def size(self) -> int:
        """Bytes of the frames."""
        return sum(end - start for start, end in self.runs)

    def stretches(self, first: int = 0) -> list[Stretch]:
        """Where the frames are, from number `first` on."""
        if first >= len(self.offsets):
            return []
        start = self.offsets[first]
        return [range(max(start, begin), end) for begin, end in self.runs if end > start]


def streams(handle: Handle, start: int, stop: int) -> list[Stream]:
    """The streams in bytes `start` to `stop` of a file, in order; whatever is no frame is passed over."""
    found: list[Stream] = []
    kind: tuple[int, int, int, int] | None = None
    for offset, header, size, tag in _frames(_Window(handle, start, stop)):
        if header.kind != kind or tag is not None or not found:
            kind = header.kind
            found.append(Stream(kind[2], kind[3], header.samples))
        stream = found[-1]
        if tag is not None:
            _read_tag(tag, stream)
            continue
        stream.offsets.append(offset)
        if stream.runs and stream.runs[-1][1] == offset:
            stream.runs[-1][1] = offset + size
        else:
            stream.runs.append([offset, offset + size])
    return [stream for stream in found if stream.offsets or stream.declared]


class _Window:
    """Bytes of a file around an offset that moves on."""

    def __init__(self, handle: Handle, start: int, stop: int) -> None:
        self._handle, self.start, self.stop = handle, start, stop
        self.base, self.content = start, b""

    def at(self, offset: int) -> int:
        """The place in `content` of an offset, with at least 8 KiB behind it if the file has them."""
        place = offset - self.base
        if place < 0 or (place + 8192 > len(self.content) and self.base + len(self.content) < self.stop):
            self._handle.seek(offset)
            self.content, self.base = self._handle.read(max(0, min(WINDOW, self.stop - offset))) or b"", offset
            place = 0
        return place


def _frames(window: _Window) -> Iterator[tuple[int, _Header, int, bytes | None]]:
    """(offset, header, bytes, its tag or None) of each whole frame."""
    at, stop = window.start, window.stop
    synced = False  # a frame ended here
    kind: tuple[int, int, int, int] | None = None
    free: dict[tuple[int, int, int, int], int] = {}  # sizes without padding, where a header says none
    while at + 4 <= stop:
        place = window.at(at)
        content = window.content
        word = int.from_bytes(content[place : place + 4], "big")
        header = _header(word >> 6 << 6) if word >> 21 == 0x7FF else None
        if header is not None:
            size = header.size or _free_size(window, at, header, free)
            tag = _tag(window.content, window.at(at), size, header) if size else None
            sure = tag is not None or (synced and header.kind == kind)
            if size and (sure or _follows(window, at, size, header, kind, free)):
                if at + size > stop:
                    return
                yield at, header, size, tag
                at, synced, kind = at + size, True, header.kind
                continue
        synced = False
        at = _past_tag(window, at) or _next_sync(window, at + 1)


def _follows(
    window: _Window,
    at: int,
    size: int,
    header: _Header,
    kind: tuple[int, int, int, int] | None,
    free: dict[tuple[int, int, int, int], int],
) -> bool:
    """Whether other frames follow one, or the end of the file: one more of a known kind, else two more."""
    for _ in range(1 if header.kind == kind else 2):
        at += size
        if at + 4 > window.stop:
            return at <= window.stop
        place = window.at(at)
        head = window.content[place : place + 4]
        if head[:3] in (b"TAG", b"ID3", b"APE"):
            return True
        word = int.from_bytes(head, "big")
        behind = _header(word >> 6 << 6) if word >> 21 == 0x7FF else None
        if behind is None or behind.kind[:3] != header.kind[:3]:
            return False
        size = behind.size or free.get(behind.kind, 0) + behind.slot
    return True


def _free_size(window: _Window, at: int, header: _Header, free: dict[tuple[int, int, int, int], int]) -> int:
    """The size of a frame of free format: how far the next one is, for the first; 0 where there is none."""
    if header.kind not in free:
        place = window.at(at)
        content = window.content
        mark = content[place : place + 2]
        behind = place + 24
        while (behind := content.find(mark, behind, place + 6000)) >= 0:
            word = int.from_bytes(content[behind : behind + 4], "big")
            other = _header(word >> 6 << 6)
            if other is not None and other.kind == header.kind and not other.size:
                free[header.kind] = behind - place - header.slot
                break
            behind += 1
        else:
            return 0
    return free[header.kind] + header.slot


def _past_tag(window: _Window, at: int) -> int | None:
    """The offset behind a tag that begins here."""
    place = window.at(at)
    head = window.content[place : place + 32]
    if head[:3] == b"ID3" and len(head) == 32 and not any(byte & 0x80 for byte in head[6:10]):
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return at + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG":
        return at + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        (size,) = struct.unpack("<I", head[12:16])
        return at + size + (32 if head[23] & 0x80 else 0)
    return None


def _next_sync(window: _Window, at: int) -> int:
    """The next offset where a frame or a tag may begin."""
    while at < window.stop:
        place = window.at(at)
        content = window.content
        if not content[place:]:
            return window.stop
        places = [found for mark in (b"\xff", b"ID3", b"APETAGEX") if (found := content.find(mark, place)) >= 0]
        if places:
            return window.base + min(places)
        at = window.base + max(place + 1, len(content) - 7)
    return window.stop


def _tag(content: bytes, place: int, size: int, header: _Header) -> bytes | None:
    """What Xing, Info or VBRI say in a frame, from their name on; None for a frame of sound."""
    for at in header.tag_at:
        if content[place + at : place + at + 4] in (b"Xing", b"Info"):
            return content[place + at : place + size]
    if header.tag_at and content[place + 36 : place + 40] == b"VBRI":
        return content[place + 36 : place + size]
    return None


def _read_tag(tag: bytes, stream: Stream) -> None:
    tag = tag.ljust(200, b"\0")
    if tag[:4] == b"VBRI":
        (stream.declared,) = struct.unpack(">I", tag[14:18])
        stream.has_vbri = True
        return
    flags = tag[7]
    if flags & 1:
        (stream.declared,) = struct.unpack(">I", tag[8:12])
    encoder = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    if tag[encoder]:
        stream.has_delay = True
        both = int.from_bytes(tag[encoder + 21 : encoder + 24], "big")
        stream.delay, stream.padding = both >> 12, both & 0xFFF
