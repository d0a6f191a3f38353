"""Tar headers: names, offsets and sizes of the members, without reading their data.

Supports ustar, pax (records `path` and `size`) and GNU long names: all that tarfile, webdataset, GNU tar and bsdtar
write for plain files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.common.errors import InputError
from pipeline.data.file_reader import FileReader

BLOCK = 512  # bytes of a tar header; data is padded to multiples of it
END = b"\0" * (2 * BLOCK)
_OCTAL = re.compile(rb"[ \0]*([0-7]+)[ \0]*")
_MAX_EXTENSION = 16 * BLOCK  # bytes of an extended header: a name of 4,096 bytes fits
_MAX_SIZE = 2**48  # bytes of a member


def iter_members(shard: FileReader) -> Iterator[tuple[str, int, int]]:
    """Yield name, data offset and bytes of every file of a tar, up to its end mark.

    Raises:
        InputError: the tar is compressed, damaged or truncated, contains links or devices, or a name points outside its
            folder.
    """
    at, where = 0, shard.path
    extension: dict[str, str] = {}  # of the next member
    if shard.read(0, min(2, shard.size)) == b"\x1f\x8b":
        raise InputError(f"{where} is compressed with gzip, but shards are read in place: unpack it with gunzip")
    while True:
        if at + BLOCK > shard.size:
            raise InputError(f"{where} is truncated: it ends at byte {shard.size} without an end mark")
        header = shard.read(at, BLOCK)
        if header == END[:BLOCK]:
            return
        name, size, kind = extension.get("path") or _name(header), _size(header), header[156:157]
        if size is None:
            raise InputError(f"{where} is damaged: there is no tar header at byte {at}")
        if kind not in b"xLg":
            size = _declared_size(extension, size, where)
        start, at = at + BLOCK, at + BLOCK + size + -size % BLOCK
        if start + size > shard.size:
            raise InputError(f"{where} is truncated: {name!r} ends at byte {start + size} of {shard.size}")
        if kind in b"xL":
            extension |= _extension(kind, shard, start, size)
            continue
        if kind in b"0\0":
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(f"{where}: the member {name!r} points outside its folder: refused")
            yield name, start, size
        elif kind not in b"g5":  # global headers and folders are ignored
            raise InputError(f"{where}: the member {name!r} is not a plain file: refused")
        extension = {}


def member_name(shard: FileReader, start: int) -> str:
    """Return the name of the member whose data start at an offset, from its headers; empty if there is none."""
    if start < BLOCK:
        return ""
    name = _name(shard.read(start - BLOCK, BLOCK))
    # if an extended header has the true name, writers put "?" or a shortened name into the plain header
    if name.isascii() and "?" not in name and len(name) < 99:
        return name
    first = start - BLOCK * (2 + _MAX_EXTENSION // BLOCK)
    for before in range(start - 3 * BLOCK, max(-1, first - 1), -BLOCK):
        header = shard.read(before, BLOCK)
        kind, size = header[156:157], _size(header)
        if kind in b"xL" and size is not None and before + BLOCK + size + -size % BLOCK == start - BLOCK:
            return _extension(kind, shard, before + BLOCK, size).get("path", name)
    return name


def _extension(kind: bytes, shard: FileReader, start: int, size: int) -> dict[str, str]:
    """Read an extended header, which describes the next member: pax records (kind x), or its name (kind L)."""
    if size > _MAX_EXTENSION:
        raise InputError(f"{shard.path}: an extended tar header has {size} bytes: refused")
    content = shard.read(start, size)
    if kind == b"L":
        return {"path": content.partition(b"\0")[0].decode("utf-8", "replace")}
    records: dict[str, str] = {}
    while content:
        length, space, _ = content.partition(b" ")
        if not (space and length.isdigit() and len(length) < 5 and len(length) + 2 < int(length) <= len(content)):
            raise InputError(f"{shard.path} is damaged: an extended tar header is malformed")
        name, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if name in (b"path", b"size"):
            records[name.decode()] = value.decode("utf-8", "replace")
        content = content[int(length) :]
    return records


def _declared_size(extension: dict[str, str], size: int, where: str) -> int:
    """Return the bytes of a member, from its pax record or else its own header."""
    if "size" not in extension:
        return size
    if not (extension["size"].isascii() and extension["size"].isdigit() and int(extension["size"]) <= _MAX_SIZE):
        raise InputError(f"{where} is damaged: a member has {extension['size']!r:.40} bytes")
    return int(extension["size"])


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix and header[257:262] == b"ustar" else name).decode("utf-8", "replace")


def _size(header: bytes) -> int | None:
    """Return the bytes of a member; None if `header` is not a valid header."""
    checksum, size = (_OCTAL.fullmatch(header[field]) for field in (slice(148, 156), slice(124, 136)))
    if checksum and size and int(checksum[1], 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        return int(size[1], 8)
    return None
