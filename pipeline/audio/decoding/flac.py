"""Files of FLAC, one behind the other."""

from __future__ import annotations

from pipeline.audio.decoding.splice import Handle

BLOCK = 1 << 20
_MARK = b"fLaC"
_STREAMINFO = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # the first bit: whether nothing else follows


def starts(handle: Handle, size: int) -> list[int]:
    """The offsets of the FLAC files in a file."""
    found: list[int] = []
    at = 0
    while at < size:
        handle.seek(at)
        block = handle.read(BLOCK) or b""
        place = block.find(_MARK)
        while 0 <= place <= len(block) - 8:
            if block[place + 4 : place + 8] in _STREAMINFO:
                found.append(at + place)
            place = block.find(_MARK, place + 1)
        if len(block) < BLOCK:
            break
        at += len(block) - 7
    return found
