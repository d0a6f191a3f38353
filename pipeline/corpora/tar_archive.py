"""Members of tar archives, listed once and read in one pass, packed or not; and the identity of any input.

A `.tar` is read by seeking. A `.tar.gz` can only be read forward: clips in the order of the plan cost one pass over it.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from pipeline.common.errors import InputError
from pipeline.corpora.base import printable, reading
from pipeline.corpora.clip import Clip

_MEMBER_PATH = re.compile(r"(.+?\.(?:tar|tar\.gz|tgz))::", re.DOTALL)
# tarfile's own errors, and what headers that lie make it raise besides
_READ_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, IndexError, RecursionError)
_EXTRA = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_MAX_EXTRA_BYTES = 1 << 16  # bytes of what an extra header tells, which tarfile holds in memory
MAX_MEMBER_BYTES = (
    1 << 30
)  # bytes of a member: it is held in memory, and a packed archive of 1 MB may promise a gigabyte


class Member(NamedTuple):
    """A file in an archive: its name and where its bytes lie, unpacked."""

    name: str
    offset: int
    size: int


class TruncatedArchive(Exception):
    """An archive that ends too early or is broken inside; the members listed before it are good."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header as tarfile reads it, but for this: without its mark of the end an archive is torn, not done."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            found = super().frombuf(buf, encoding, errors)
            if found.size < 0 or (found.type in _EXTRA and found.size > _MAX_EXTRA_BYTES):  # a loop, or all memory
                raise tarfile.ReadError(f"a header says {found.size} bytes")
            return found
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def member_path(archive: Path, member: str) -> str:
    """The path of a clip that lies in an archive."""
    return f"{archive}::{member}"


def iter_members(archive: Path, wanted: str | None = None) -> Iterator[tuple[Member, bytes | None]]:
    """Every regular file of an archive in order, with the content of those whose name ends with `wanted`.

    Raises:
        InputError: the archive cannot be opened, or a member's name is absolute or climbs out of it with `..`.
        Torn: the archive is broken; the members that it holds whole have been given.
    """
    with _open_unpacked(archive) as stream:
        try:
            tar = tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo)  # noqa: SIM115 - the stream is closed
            held = None  # a member is known to be whole when the next header has been read
            at = -1
            while (info := tar.next()) is not None:
                if tar.offset <= at:  # an extended header may say a size below 0
                    raise tarfile.ReadError("a header points back")
                at = tar.offset
                tar.members.clear()  # type: ignore[attr-defined] # tarfile remembers every header: a million of them is a gigabyte
                if held:
                    yield held
                held = None
                _check_member_name(archive, info.name)
                if info.isreg() and not info.issparse():
                    content = None
                    if wanted and info.name.endswith(wanted):
                        if info.size > MAX_MEMBER_BYTES:
                            raise InputError(f"{printable(archive)}: {info.name!r} of {info.size} bytes is too large")
                        content = tar.extractfile(info).read()  # type: ignore[union-attr]
                    held = Member(info.name, info.offset_data, info.size), content
            if held:
                yield held
            while stream.read(1 << 16):  # to the end, where gzip keeps its checksum
                pass
        except InputError:
            raise
        except _READ_ERRORS as error:
            raise TruncatedArchive(str(error) or type(error).__name__) from error


def load(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The clips again, those in archives with their `content`; others as they are. In plan order it is one pass.

    Raises:
        InputError: an archive cannot be opened, or is not what it was when it was listed.
    """
    name, stream, last, content = "", None, "", b""
    try:
        for clip in clips:
            if clip.span is None:
                yield clip
                continue
            if clip.path != last:  # segments of one recording share its bytes
                if archive_of(clip.path) != name:
                    if stream:
                        stream.close()
                    name = archive_of(clip.path)
                    stream = _open_unpacked(Path(name))
                last, content = clip.path, _read(stream, clip, name)
            yield replace(clip, content=content)
    finally:
        if stream:
            stream.close()


def fingerprint(clip: Clip) -> str:
    """What changes when the clip's input does, without reading it: size, time of change, place in its archive.

    It knows nothing of `start`, `duration` and `labels`, which stand in the clip. "" for an input that is gone.
    """
    try:
        seen = os.stat(clip.path if clip.span is None else archive_of(clip.path))  # noqa: PTH116 - twice as fast
    except OSError:
        return ""
    place = "" if clip.span is None else f"-{clip.span[0]}-{clip.span[1]}"
    return f"{seen.st_size}-{seen.st_mtime_ns}{place}"


def _open_unpacked(archive: Path) -> IO[bytes]:
    with reading(archive):
        if archive.name.endswith(("gz", "tgz")):
            return gzip.open(archive, "rb")  # type: ignore[return-value]
        return archive.open("rb")


def archive_of(path: str) -> str:
    """The archive in which a clip lies whose path `inside` made."""
    found = _MEMBER_PATH.match(path)
    assert found, f"{path!r} names no archive"
    return found.group(1)


def _read(stream: IO[bytes] | None, clip: Clip, archive: str) -> bytes:
    assert stream and clip.span
    offset, size = clip.span
    try:
        stream.seek(offset)
        content = stream.read(size)
    except _READ_ERRORS as error:
        raise InputError(f"{printable(archive)} broke while it was read ({error}): mend it and run again") from error
    if len(content) < size:
        raise InputError(f"{printable(archive)} grew shorter while it was read: mend it and run again")
    return content


def _check_member_name(archive: Path, name: str) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"{printable(archive)} holds {name!r}, which points outside of it: refused; fetch it anew")
