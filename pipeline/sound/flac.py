"""FLAC whose header does not say how long it is, and files of FLAC one behind the other."""

from __future__ import annotations

from pipeline.sound.splice import Handle, Stretch

BLOCK = 1 << 20
TAIL = 1 << 14  # bytes behind the sound that may be tags
_MARK = b"fLaC\x00\x00\x00\x22"  # or with the first bit set where nothing but STREAMINFO follows
_MARKS = (_MARK, b"fLaC\x80\x00\x00\x22")


def starts(handle: Handle, size: int) -> list[int]:
    """The offsets of the FLAC files in a file."""
    found: list[int] = []
    at = 0
    while at < size:
        handle.seek(at)
        block = handle.read(BLOCK) or b""
        for mark in _MARKS:
            place = block.find(mark)
            while place >= 0:
                found.append(at + place)
                place = block.find(mark, place + 1)
        if len(block) < BLOCK:
            break
        at += len(block) - len(_MARK) + 1
    return sorted(set(found))


def without_length(handle: Handle, size: int) -> list[Stretch]:
    """A file of FLAC whose header does not say how long it is, so that all of it is read."""
    handle.seek(0)
    head = bytearray(handle.read(26) or b"")
    head[21] &= 0xF0  # 36 bits of samples, 4 of them here
    head[22:26] = bytes(4)
    return [bytes(head), range(26, size)]
