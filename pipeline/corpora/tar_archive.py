"""Lists and reads the members of tar archives, and fingerprints inputs.

A `.tar` is read by seeking. A `.tar.gz` can only be read forward: clips sorted by offset take one pass.
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
# tarfile's errors, and others that it raises for invalid headers
_READ_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, IndexError, RecursionError)
_EXTRA = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_MAX_EXTRA_BYTES = 1 << 16  # of an extended header, which tarfile reads into memory
MAX_MEMBER_BYTES = 1 << 30  # a member is read into memory, and a compressed archive of 1 MB may contain a gigabyte


class Member(NamedTuple):
    """A file in an archive. offset, size: of its bytes in the uncompressed archive."""

    name: str
    offset: int
    size: int


class TruncatedArchive(Exception):
    """An archive is truncated or damaged; the members before the damage are intact."""


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header; unlike in tarfile, an archive without an end marker is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
            # tarfile would loop forever, or exhaust the memory
            if header.size < 0 or (header.type in _EXTRA and header.size > _MAX_EXTRA_BYTES):
                raise tarfile.ReadError(f"a header declares {header.size} bytes")
            return header
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def member_path(archive: Path, member: str) -> str:
    """Return the path of a clip in an archive."""
    return f"{archive}::{member}"


def iter_members(archive: Path, content_suffix: str | None = None) -> Iterator[tuple[Member, bytes | None]]:
    """Yield every regular file of an archive in order, with its content if its name ends with `content_suffix`.

    Raises:
        InputError: The archive cannot be opened, or a member's name is absolute or contains `..`.
        TruncatedArchive: The archive is damaged; raised after the intact members.
    """
    with _open_unpacked(archive) as stream:
        try:
            tar = tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo)  # noqa: SIM115 - the stream is closed
            pending = None  # a member is known to be complete when the next header has been read
            at = -1
            while (info := tar.next()) is not None:
                if tar.offset <= at:  # an extended header may declare a negative size
                    raise tarfile.ReadError("a header points backwards")
                at = tar.offset
                tar.members.clear()  # type: ignore[attr-defined] # tarfile keeps all headers: a gigabyte per million
                if pending:
                    yield pending
                pending = None
                _check_member_name(archive, info.name)
                if info.isreg() and not info.issparse():
                    content = None
                    if content_suffix and info.name.endswith(content_suffix):
                        if info.size > MAX_MEMBER_BYTES:
                            raise InputError(f"{printable(archive)}: {info.name!r} of {info.size} bytes is too large")
                        content = tar.extractfile(info).read()  # type: ignore[union-attr]
                    pending = Member(info.name, info.offset_data, info.size), content
            if pending:
                yield pending
            while stream.read(1 << 16):  # to the end, where gzip verifies its checksum
                pass
        except InputError:
            raise
        except _READ_ERRORS as error:
            raise TruncatedArchive(str(error) or type(error).__name__) from error


def load(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yield the clips, with `content` for those in archives; in the order of `Corpus.clips` this takes one pass.

    Raises:
        InputError: An archive cannot be opened, or has changed since it was listed.
    """
    name, stream, last, content = "", None, "", b""
    try:
        for clip in clips:
            if clip.span is None:
                yield clip
                continue
            if clip.path != last:  # segments of a recording share its bytes
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
    """Return size, modification time and position in the archive of a clip's input; "" if the input is missing.

    It does not depend on the clip's `start`, `duration` and `labels`.
    """
    try:
        status = os.stat(clip.path if clip.span is None else archive_of(clip.path))  # noqa: PTH116 - twice as fast
    except OSError:
        return ""
    position = "" if clip.span is None else f"-{clip.span[0]}-{clip.span[1]}"
    return f"{status.st_size}-{status.st_mtime_ns}{position}"


def _open_unpacked(archive: Path) -> IO[bytes]:
    with reading(archive):
        if archive.name.endswith(("gz", "tgz")):
            return gzip.open(archive, "rb")  # type: ignore[return-value]
        return archive.open("rb")


def archive_of(path: str) -> str:
    """Return the archive of a path that `member_path` returned."""
    match = _MEMBER_PATH.match(path)
    assert match, f"{path!r} is not a path in an archive"
    return match.group(1)


def _read(stream: IO[bytes] | None, clip: Clip, archive: str) -> bytes:
    assert stream and clip.span
    offset, size = clip.span
    try:
        stream.seek(offset)
        content = stream.read(size)
    except _READ_ERRORS as error:
        raise InputError(
            f"{printable(archive)} could not be read to the end ({error}): fix it and run again"
        ) from error
    if len(content) < size:
        raise InputError(f"{printable(archive)} became shorter while it was read: fix it and run again")
    return content


def _check_member_name(archive: Path, name: str) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"{printable(archive)} contains {name!r}, which points outside of it; download it again")
