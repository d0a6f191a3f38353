"""Concatenated FLAC files."""

from __future__ import annotations

from pipeline.audio.decoding.splice import Handle

BLOCK = 1 << 20
_MARK = b"fLaC"
_STREAMINFO = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # the first bit: whether it is the last metadata block


def find_starts(handle: Handle, size: int) -> list[int]:
    """Return the offsets of the FLAC files that are concatenated in a file of `size` bytes."""
    offsets: list[int] = []
    at = 0
    while at < size:
        handle.seek(at)
        block = handle.read(BLOCK) or b""
        index = block.find(_MARK)
        while 0 <= index <= len(block) - 8:
            if block[index + 4 : index + 8] in _STREAMINFO:
                offsets.append(at + index)
            index = block.find(_MARK, index + 1)
        if len(block) < BLOCK:
            break
        at += len(block) - 7
    return offsets
