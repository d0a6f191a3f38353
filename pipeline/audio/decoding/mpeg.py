"""Parses MPEG audio (MP3, MP2) frame by frame, to find its length and the position of its frames.

The length that a header estimates is not trusted: frames are counted. A file may contain several concatenated streams;
each begins with a tag frame (Xing, Info, VBRI), or where the sample rate or the number of channels changes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from pipeline.audio.decoding.splice import Handle, Part

WINDOW = 1 << 20  # bytes read at a time
DECODER_DELAY = 529  # samples
_KBITS = {  # (version 1 or 2, layer): bit rates in kbit/s by index
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Hz by the version bits
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class FrameHeader(NamedTuple):
    """The header of a frame.

    Attributes:
        kind: The properties that all frames of a stream share.
        samples: Samples per channel.
        size: Bytes of the frame; 0 for free format.
        slot: Bytes of padding.
        tag_at: Offsets in the frame at which an encoder tag may begin.
    """

    kind: tuple[int, int, int, int]  # version bits, layer, rate, channels
    samples: int
    size: int
    slot: int
    tag_at: tuple[int, ...]


@lru_cache(1 << 12)
def _parse_header(bits: int) -> FrameHeader | None:
    """Parse 4 bytes, as a number; None if they are not a frame header. The last 6 bits are ignored."""
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    kbits, rate, padding, mono = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1, bits >> 6 & 3 == 3
    if bits >> 21 != 0x7FF or version == 1 or layer == 4 or kbits == 15 or rate == 3:
        return None
    hz, low = _RATES[version][rate], version != 3
    bit_rate = 1000 * _KBITS[2 if low else 1, layer][kbits]
    slot = 4 if layer == 1 else 1
    samples = 384 if layer == 1 else 576 if layer == 3 and low else 1152
    size = (samples * bit_rate // 8 // hz // slot + padding) * slot if bit_rate else 0
    side = (9 if mono else 17) if low else (17 if mono else 32)
    protected = not bits >> 16 & 1
    tag_at = () if layer != 3 else (4 + side, 6 + side) if protected else (4 + side,)
    return FrameHeader((version, layer, hz, 1 if mono else 2), samples, size, slot * padding, tag_at)


@dataclass
class MpegStream:
    """A sequence of frames of one kind.

    Attributes:
        rate, channels: Of the audio.
        samples: Samples per channel of a frame.
        runs: [start, end] offsets of contiguous frames.
        offsets: The offset of each frame.
        declared: The number of frames that the tag declares, if any.
        delay, padding: Samples that the encoder added at the start and at the end, as the tag declares.
        has_delay: Whether the tag declares them.
        has_vbri: Whether the tag is VBRI, which libsndfile decodes as audio.
    """

    rate: int
    channels: int
    samples: int
    runs: list[list[int]] = field(default_factory=list)
    offsets: MutableSequence[int] = field(default_factory=lambda: array("Q"))
    declared: int | None = None
    delay: int = 0
    padding: int = 0
    has_delay: bool = False
    has_vbri: bool = False

    @property
    def skip(self) -> int:
        """Samples per channel that a decoder returns before the audio."""
        return self.delay + DECODER_DELAY if self.has_delay else 0

    @property
    def frames(self) -> int:
        """Samples per channel of the audio."""
        after = max(0, self.padding - DECODER_DELAY) if self.has_delay and not self.is_truncated else 0
        return max(0, len(self.offsets) * self.samples - self.skip - after)

    @property
    def is_truncated(self) -> bool:
        """Whether declared frames are missing at the end; frames lost in gaps do not count.

        Some encoders count the tag frame.
        """
        gaps = sum(start - end for (_, end), (start, _) in pairwise(self.runs))
        lost = 2 * gaps * len(self.offsets) // self.size + 2 * (len(self.runs) - 1) if self.runs else 0
        return self.declared is not None and self.declared > len(self.offsets) + 1 + lost

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(end - start for start, end in self.runs)

    def parts(self, first: int = 0) -> list[Part]:
        """Return the ranges of the file that contain the frames from number `first` on."""
        if first >= len(self.offsets):
            return []
        start = self.offsets[first]
        return [range(max(start, begin), end) for begin, end in self.runs if end > start]


def find_streams(handle: Handle, start: int, stop: int) -> list[MpegStream]:
    """Return the streams in bytes `start` to `stop` of a file, in order; bytes between frames are skipped."""
    result: list[MpegStream] = []
    kind: tuple[int, int, int, int] | None = None
    for offset, header, size, tag in _frames(_Window(handle, start, stop)):
        if header.kind != kind or tag is not None or not result:
            kind = header.kind
            result.append(MpegStream(kind[2], kind[3], header.samples))
        stream = result[-1]
        if tag is not None:
            _read_tag(tag, stream)
            continue
        stream.offsets.append(offset)
        if stream.runs and stream.runs[-1][1] == offset:
            stream.runs[-1][1] = offset + size
        else:
            stream.runs.append([offset, offset + size])
    return [stream for stream in result if stream.offsets or stream.declared]


class _Window:
    """A buffered part of a file around an advancing offset."""

    def __init__(self, handle: Handle, start: int, stop: int) -> None:
        self._handle, self.start, self.stop = handle, start, stop
        self.base, self.content = start, b""

    def locate(self, offset: int) -> int:
        """Return the index of an offset in `content`, followed by at least 8 KiB if the file has them."""
        index = offset - self.base
        if index < 0 or (index + 8192 > len(self.content) and self.base + len(self.content) < self.stop):
            self._handle.seek(offset)
            self.content, self.base = self._handle.read(max(0, min(WINDOW, self.stop - offset))) or b"", offset
            index = 0
        return index


def _frames(window: _Window) -> Iterator[tuple[int, FrameHeader, int, bytes | None]]:
    """Yield (offset, header, size, encoder tag or None) of each complete frame."""
    at, stop = window.start, window.stop
    synced = False  # whether a frame ended at `at`
    kind: tuple[int, int, int, int] | None = None
    free: dict[tuple[int, int, int, int], int] = {}  # sizes without padding of free-format frames
    while at + 4 <= stop:
        index = window.locate(at)
        content = window.content
        bits = int.from_bytes(content[index : index + 4], "big")
        header = _parse_header(bits >> 6 << 6) if bits >> 21 == 0x7FF else None
        if header is not None:
            size = header.size or _free_format_size(window, at, header, free)
            tag = _encoder_tag(window.content, window.locate(at), size, header) if size else None
            is_frame = tag is not None or (synced and header.kind == kind)
            if size and (is_frame or _is_followed_by_frames(window, at, size, header, kind, free)):
                if at + size > stop:
                    return
                yield at, header, size, tag
                at, synced, kind = at + size, True, header.kind
                continue
        synced = False
        at = _end_of_tag(window, at) or _next_sync(window, at + 1)


def _is_followed_by_frames(
    window: _Window,
    at: int,
    size: int,
    header: FrameHeader,
    kind: tuple[int, int, int, int] | None,
    free: dict[tuple[int, int, int, int], int],
) -> bool:
    """Whether the frame is followed by the end of the file or by more frames: one if its kind is known, else two."""
    for _ in range(1 if header.kind == kind else 2):
        at += size
        if at + 4 > window.stop:
            return at <= window.stop
        index = window.locate(at)
        head = window.content[index : index + 4]
        if head[:3] in (b"TAG", b"ID3", b"APE"):
            return True
        bits = int.from_bytes(head, "big")
        after = _parse_header(bits >> 6 << 6) if bits >> 21 == 0x7FF else None
        if after is None or after.kind[:3] != header.kind[:3]:
            return False
        size = after.size or free.get(after.kind, 0) + after.slot
    return True


def _free_format_size(window: _Window, at: int, header: FrameHeader, free: dict[tuple[int, int, int, int], int]) -> int:
    """Return the size of a free-format frame, first measured as the distance to the next one; 0 if there is none."""
    if header.kind not in free:
        index = window.locate(at)
        content = window.content
        mark = content[index : index + 2]
        after = index + 24
        while (after := content.find(mark, after, index + 6000)) >= 0:
            bits = int.from_bytes(content[after : after + 4], "big")
            other = _parse_header(bits >> 6 << 6)
            if other is not None and other.kind == header.kind and not other.size:
                free[header.kind] = after - index - header.slot
                break
            after += 1
        else:
            return 0
    return free[header.kind] + header.slot


def _end_of_tag(window: _Window, at: int) -> int | None:
    """Return the offset after the ID3, APE or ID3v1 tag that begins at `at`; None if there is none."""
    index = window.locate(at)
    head = window.content[index : index + 32]
    if head[:3] == b"ID3" and len(head) == 32 and not any(byte & 0x80 for byte in head[6:10]):
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return at + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG":
        return at + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        (size,) = struct.unpack("<I", head[12:16])
        return at + int(size) + (32 if head[23] & 0x80 else 0)
    return None


def _next_sync(window: _Window, at: int) -> int:
    """Return the next offset at which a frame or a tag may begin."""
    while at < window.stop:
        index = window.locate(at)
        content = window.content
        if not content[index:]:
            return window.stop
        matches = [match for mark in (b"\xff", b"ID3", b"APETAGEX") if (match := content.find(mark, index)) >= 0]
        if matches:
            return window.base + min(matches)
        at = window.base + max(index + 1, len(content) - 7)
    return window.stop


def _encoder_tag(content: bytes, index: int, size: int, header: FrameHeader) -> bytes | None:
    """Return the Xing, Info or VBRI tag in a frame, from its name on; None for an audio frame."""
    for at in header.tag_at:
        if content[index + at : index + at + 4] in (b"Xing", b"Info"):
            return content[index + at : index + size]
    if header.tag_at and content[index + 36 : index + 40] == b"VBRI":
        return content[index + 36 : index + size]
    return None


def _read_tag(tag: bytes, stream: MpegStream) -> None:
    """Store what an encoder tag declares in the stream."""
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
