"""Large files over HTTP: resumed where they broke off, verified, and never under their own name before they are whole.

A file grows as `.partial.NAME`, beside a note of what the server said of it; both go when it takes its name.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import requests
import urllib3

from pipeline.common.errors import redact
from pipeline.common.files import hash_file
from pipeline.corpora.tar_archive import TruncatedArchive, iter_members

CHUNK = 1 << 20
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # HTTP: try again later
MAX_PAUSE = 60.0  # seconds
_COUNT = re.compile(r"[0-9]{1,18}")
_HEADERS = {"Accept-Encoding": "identity"}  # else a server may pack what is packed, and its offsets mean nothing


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch. path: where it goes; sha256: as its publisher states it; starts: its first bytes."""

    url: str
    path: Path
    sha256: str | None = None
    magic: bytes = b""


@dataclass(frozen=True)
class RetryPolicy:
    """attempts: in a row without a byte gained; timeout: seconds of silence; pause: seconds before the first retry."""

    attempts: int
    timeout: float
    pause: float


class DownloadError(Exception):
    """A file that could not be fetched; the message names its address, without a login, and what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class _RetryableError(Exception):
    """Worth another attempt. after: seconds that the server asked to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass
class _ServerMetadata:
    """What a server said of a file: its bytes, its version (ETag or date) and its MD5 in hex."""

    size: int | None = None
    version: str | None = None
    md5: str | None = None


class _PartialFile:
    """A file on its way."""

    def __init__(self, path: Path) -> None:
        self.target = path
        self.path = self.path_of(path)
        self._parse_metadata = path.with_name(f".partial.{path.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)

    def adopt(self, note: _ServerMetadata) -> None:
        """Take what another program left under the file's name for its beginning."""
        self.target.replace(self.path)
        self.note = note

    @staticmethod
    def path_of(target: Path) -> Path:
        return target.with_name(f".partial.{target.name}")  # keeps the ending, which says how to read an archive

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> _ServerMetadata:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _ServerMetadata(**json.loads(self._parse_metadata.read_text()))
        return _ServerMetadata()

    @note.setter
    def note(self, note: _ServerMetadata) -> None:
        self._parse_metadata.write_text(json.dumps(vars(note)))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._parse_metadata.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._parse_metadata.unlink(missing_ok=True)


def bytes_on_disk(remote: RemoteFile) -> int:
    """How many bytes of a file lie here already."""
    for path in (_PartialFile.path_of(remote.path), remote.path):
        if path.exists():
            return path.stat().st_size
    return 0


def remote_size(remote: RemoteFile, timeout: float) -> int | None:
    """Bytes, as the server tells without sending them; None where it does not.

    Raises:
        FetchError: there is no such server, or no way to it.
    """
    try:
        return _request_metadata(remote, timeout).size
    except (requests.ConnectionError, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise DownloadError(f"{remote.url} cannot be reached ({type(error).__name__})") from error
    except (requests.RequestException, ValueError):
        return None


def _request_metadata(remote: RemoteFile, timeout: float) -> _ServerMetadata:
    """What the server says of a file without sending it."""
    answer = requests.head(remote.url, headers=_HEADERS, timeout=timeout, allow_redirects=True)
    return _parse_metadata(answer, 0) if answer.status_code == 200 else _ServerMetadata()


def download(
    remote: RemoteFile,
    patience: RetryPolicy,
    at: Callable[[int], None] = lambda position: None,
    stop: threading.Event | None = None,
) -> str:
    """Fetch a file whole, or go on with it; returns how it was verified.

    What another program left under its name is gone on with where a checksum will prove the whole; else it stays there
    until the new file is whole.

    at: told how many bytes are there. stop: set it to give up; what has come stays for the next run.

    Raises:
        FetchError: it is not there, cannot be written, or stays broken after `patience.attempts`.
    """
    stop = stop or threading.Event()
    try:
        partial = _PartialFile(remote.path)
        _adopt_existing(remote, partial, patience.timeout)
        best, left = partial.size, patience.attempts
        while True:
            try:
                at(partial.size)
                if partial.note.size is None or partial.size != partial.note.size:
                    _transfer(remote, partial, patience.timeout, at, stop)
                how = _verify_partial(remote, partial)
                partial.finish()
                return how
            except _RetryableError as error:
                left = patience.attempts if partial.size > best else left - 1
                best = max(best, partial.size)
                if left == 0 or stop.is_set():
                    raise DownloadError(f"{remote.url}: {error}") from error
                stop.wait(error.after or min(MAX_PAUSE, patience.pause * 2 ** (patience.attempts - left - 1)))
    except OSError as error:
        raise DownloadError(f"{remote.path} cannot be written: {error.strerror or error}") from error


def _adopt_existing(remote: RemoteFile, partial: _PartialFile, timeout: float) -> None:
    """Go on with what another program began, if a checksum will tell: it may be the beginning of another version."""
    if partial.size:
        if partial.note == _ServerMetadata() and not remote.sha256:
            partial.discard()
        return
    if not remote.path.exists():
        return
    stated = _ServerMetadata()
    if not remote.sha256:
        with contextlib.suppress(requests.RequestException):
            stated = _request_metadata(remote, timeout)
    if remote.sha256 or stated.md5:
        partial.adopt(_ServerMetadata(md5=stated.md5))


def verify_file(remote: RemoteFile) -> str:
    """Verify a file that lies there already; returns how. Raises FetchError where it is not what was published."""
    try:
        return _verify(remote, remote.path, None)
    except _VerificationError as error:
        raise DownloadError(f"{remote.path}: {error}: delete it and run again") from error


def _verify_partial(remote: RemoteFile, partial: _PartialFile) -> str:
    """How the whole file was found to be right; what is wrong is thrown away and fetched anew."""
    try:
        return _verify(remote, partial.path, partial.note.md5)
    except _VerificationError as error:
        partial.discard()
        raise _RetryableError(str(error)) from error


def _transfer(
    remote: RemoteFile, partial: _PartialFile, timeout: float, at: Callable[[int], None], stop: threading.Event
) -> None:
    """Bring the partial file to the size that the server states; raises _Again where that broke off."""
    offset, before = partial.size, partial.note
    headers = dict(_HEADERS)
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if before.version:
            headers["If-Range"] = before.version
    try:
        with requests.get(remote.url, headers=headers, timeout=timeout, stream=True) as answer:
            skip = _reconcile(remote, partial, answer, offset)
            if answer.ok:
                _receive(remote, partial, answer.raw, skip, at, stop)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        if isinstance(error, ValueError):  # an address that is none
            raise DownloadError(f"{remote.url}: {error}") from error
        raise _RetryableError(f"the connection broke after {partial.size:,} bytes ({type(error).__name__})") from error
    size = partial.note.size
    if size is not None and partial.size < size:
        raise _RetryableError(f"the connection broke after {partial.size:,} of {size:,} bytes")


def _reconcile(remote: RemoteFile, partial: _PartialFile, answer: requests.Response, offset: int) -> int:
    """Note what the server said and make the partial file fit it; returns how many of the bytes to come are here."""
    if answer.status_code in RETRY_STATUSES:
        wait = answer.headers.get("Retry-After", "")
        raise _RetryableError(
            f"HTTP {answer.status_code} {answer.reason}", min(float(wait), 3600) if _COUNT.fullmatch(wait) else 0.0
        )
    if answer.status_code == 416 and answer.headers.get("Content-Range") == f"bytes */{offset}":
        partial.note = replace(partial.note, size=offset)  # it is whole: the size stated before was wrong
        return 0
    if answer.status_code == 416 or (answer.status_code == 206 and not _range_matches(answer, partial.note, offset)):
        partial.discard()
        raise _RetryableError("what lies here does not fit the file there")
    if answer.status_code not in (200, 206):
        raise DownloadError(f"{remote.url}: HTTP {answer.status_code} {answer.reason}")
    now = _parse_metadata(answer, offset if answer.status_code == 206 else 0)
    if answer.status_code == 206:
        partial.note = replace(now, md5=now.md5 or partial.note.md5)
        return 0
    same = now.version is not None and now.version == partial.note.version and now.size == partial.note.size
    if not same:  # the server sends all of it: what is here belongs to it only if it is the same version
        partial.discard()
    partial.note = now
    return partial.size


def _range_matches(answer: requests.Response, before: _ServerMetadata, offset: int) -> bool:
    extent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not extent or int(extent[1]) != offset:
        return False
    return before.size is None or extent[3] in ("*", str(before.size))


def _parse_metadata(answer: requests.Response, offset: int) -> _ServerMetadata:
    length = answer.headers.get("Content-Length", "")
    size = offset + int(length) if _COUNT.fullmatch(length) else None
    md5 = re.search(r"md5=([A-Za-z0-9+/]{22}==)", answer.headers.get("x-goog-hash", ""))  # Google's storage
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if version and version.startswith("W/"):  # says "alike", not "the same bytes"
        version = None
    return _ServerMetadata(size, version, base64.b64decode(md5[1]).hex() if md5 else None)


def _receive(
    remote: RemoteFile,
    partial: _PartialFile,
    stream: urllib3.response.BaseHTTPResponse,
    skip: int,
    at: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Append what comes, but for the first `skip` bytes."""
    with partial.path.open("ab") as file:
        for chunk in stream.stream(CHUNK, decode_content=False):
            if stop.is_set():
                raise _RetryableError("stopped")
            new = chunk[skip:]
            skip -= len(chunk) - len(new)
            if new and file.tell() == 0 and not new.startswith(remote.magic[: len(new)]):
                raise DownloadError(f"{remote.url} sends something else: it starts with {new[:16]!r}")
            file.write(new)
            at(file.tell())


class _VerificationError(Exception):
    """A whole file that is not the one that was published."""


def _verify(remote: RemoteFile, path: Path, md5: str | None) -> str:
    """How a file was found to be right, by the best means there is."""
    with path.open("rb") as file:
        if not file.read(len(remote.magic)) == remote.magic:
            raise _VerificationError("it is something else by its first bytes")
    if remote.sha256:
        if hash_file(path, "sha256") != remote.sha256:
            raise _VerificationError("its SHA-256 is not the one that its publisher states")
        return "SHA-256 as published"
    if md5:
        if hash_file(path, "md5") != md5:
            raise _VerificationError("its MD5 is not the one that the server states")
        return "MD5 as the server states it"
    if path.name.endswith((".tar", ".tar.gz")):
        try:
            count = sum(1 for _ in iter_members(path))
        except TruncatedArchive as error:
            raise _VerificationError(f"the archive is torn: {error}") from error
        return f"read through: {count:,} files, no published checksum"
    return "size only: no published checksum"
