"""Tar headers in mapped bytes: names, offsets and sizes of the members, found without copying their data.

Reads ustar, pax (records `path` and `size`) and GNU long names: all that tarfile, webdataset, GNU tar and bsdtar write
for plain files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.common.errors import InputError

BLOCK = 512  # bytes of a tar header, and the unit that data is padded to
END = b"\0" * (2 * BLOCK)
_OCTAL = re.compile(rb"[ \0]*([0-7]+)[ \0]*")
_MAX_EXTENSION = 16 * BLOCK  # bytes of an extended header: a name of 4,096 bytes fits
_MAX_SIZE = 2**48  # bytes of a member


def iter_members(shard: memoryview, where: str) -> Iterator[tuple[str, int, int]]:
    """Name, data offset and bytes of every file of a tar, up to its end mark.

    Raises:
        InputError: the tar is compressed, damaged or cut short, holds links or devices, or a name that leaves its
            folder.
    """
    at = 0
    extension: dict[str, str] = {}  # of the next member
    if bytes(shard[:2]) == b"\x1f\x8b":
        raise InputError(f"{where} is compressed by gzip: shards are read in place; unpack it with gunzip")
    while True:
        header = bytes(shard[at : at + BLOCK])
        if len(header) < BLOCK:
            raise InputError(f"{where} is cut short: it ends at byte {len(shard)} without an end mark")
        if header == END[:BLOCK]:
            return
        name, size, kind = extension.get("path") or _name(header), _size(header), header[156:157]
        if size is None:
            raise InputError(f"{where} is damaged: no tar header at byte {at}")
        if kind not in b"xLg":
            size = _declared_size(extension, size, where)
        start, at = at + BLOCK, at + BLOCK + size + -size % BLOCK
        if start + size > len(shard):
            raise InputError(f"{where} is cut short: {name!r} ends at byte {start + size} of {len(shard)}")
        if kind in b"xL":
            extension |= _extension(kind, bytes(shard[start : start + size]), where)
            continue
        if kind in b"0\0":
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(f"{where}: refused, for the member {name!r} points out of its folder")
            yield name, start, size
        elif kind not in b"g5":  # global headers and folders hold nothing that is read
            raise InputError(f"{where}: refused, for the member {name!r} is no plain file")
        extension = {}


def member_name(shard: memoryview, start: int) -> str:
    """The name of the member whose data begin at an offset, from the headers before them; "" where there is none."""
    if start < BLOCK:
        return ""
    name = _name(bytes(shard[start - BLOCK : start]))
    # Writers put "?" or a cut name into the plain header where an extended one before it has the true name.
    if name.isascii() and "?" not in name and len(name) < 99:
        return name
    header_at = start - BLOCK
    for blocks in range(1, _MAX_EXTENSION // BLOCK + 1):
        before = header_at - BLOCK * (blocks + 1)
        if before < 0:
            break
        header = bytes(shard[before : before + BLOCK])
        kind, size = header[156:157], _size(header)
        if kind in b"xL" and size is not None and -(-size // BLOCK) == blocks:
            content = bytes(shard[before + BLOCK : before + BLOCK + size])
            return _extension(kind, content, "the shard").get("path", name)
    return name


def _extension(kind: bytes, content: bytes, where: str) -> dict[str, str]:
    """What an extended header says of the next member: pax records (kind x), or its name (kind L)."""
    if len(content) > _MAX_EXTENSION:
        raise InputError(f"{where}: refused, for an extended tar header of {len(content)} bytes")
    if kind == b"L":
        return {"path": content.partition(b"\0")[0].decode("utf-8", "replace")}
    records: dict[str, str] = {}
    while content:
        length, space, _ = content.partition(b" ")
        if not (space and length.isdigit() and len(length) < 5 and len(length) + 2 < int(length) <= len(content)):
            raise InputError(f"{where} is damaged: a record of an extended tar header is malformed")
        name, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if name in (b"path", b"size"):
            records[name.decode()] = value.decode("utf-8", "replace")
        content = content[int(length) :]
    return records


def _declared_size(extension: dict[str, str], size: int, where: str) -> int:
    """Bytes of a member: as a pax record says, else as its own header does."""
    if "size" not in extension:
        return size
    if not (extension["size"].isascii() and extension["size"].isdigit() and int(extension["size"]) <= _MAX_SIZE):
        raise InputError(f"{where} is damaged: a member of {extension['size']!r:.40} bytes")
    return int(extension["size"])


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix and header[257:262] == b"ustar" else name).decode("utf-8", "replace")


def _size(header: bytes) -> int | None:
    """Bytes of a member; None where these are not the bytes of a header."""
    checksum, size = (_OCTAL.fullmatch(header[field]) for field in (slice(148, 156), slice(124, 136)))
    if checksum and size and int(checksum[1], 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        return int(size[1], 8)
    return None
