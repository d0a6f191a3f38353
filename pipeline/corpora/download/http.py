"""Downloads large files over HTTP, with resume and verification.

A file is downloaded as `.partial.NAME`, with the server's metadata in `.partial.NAME.json`. It is renamed when it is
complete and verified.
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
from pipeline.corpora.base import RemoteFile
from pipeline.corpora.tar_archive import TruncatedArchive, iter_members

CHUNK = 1 << 20
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses of temporary failures
MAX_PAUSE = 60.0  # seconds
_COUNT = re.compile(r"[0-9]{1,18}")
_HEADERS = {"Accept-Encoding": "identity"}  # with compression, byte offsets would be wrong


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry.

    Attributes:
        attempts: Attempts without progress before a download fails.
        timeout: Seconds without data before a connection is considered lost.
        pause: Seconds before the first retry; doubled before each further one.
    """

    attempts: int
    timeout: float
    pause: float


class DownloadError(Exception):
    """A file could not be downloaded; the message names its address, without credentials, and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class _RetryableError(Exception):
    """A failure that may be temporary. after: seconds to wait, as the server requests."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass
class _ServerMetadata:
    """What a server reports about a file: size in bytes, version (ETag or date) and MD5 in hex."""

    size: int | None = None
    version: str | None = None
    md5: str | None = None


class _PartialFile:
    """A file that is being downloaded, and the server's metadata."""

    def __init__(self, path: Path) -> None:
        self.target = path
        self.path = self.path_of(path)
        self._metadata_path = path.with_name(f".partial.{path.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)

    def adopt(self, metadata: _ServerMetadata) -> None:
        """Use the file that another program left at the target as the beginning."""
        self.target.replace(self.path)
        self.metadata = metadata

    @staticmethod
    def path_of(target: Path) -> Path:
        return target.with_name(f".partial.{target.name}")  # keeps the suffix, which determines how an archive is read

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def metadata(self) -> _ServerMetadata:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _ServerMetadata(**json.loads(self._metadata_path.read_text()))
        return _ServerMetadata()

    @metadata.setter
    def metadata(self, metadata: _ServerMetadata) -> None:
        self._metadata_path.write_text(json.dumps(vars(metadata)))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._metadata_path.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._metadata_path.unlink(missing_ok=True)


def bytes_on_disk(remote: RemoteFile) -> int:
    """Return the number of bytes of a file that are on disk."""
    for path in (_PartialFile.path_of(remote.path), remote.path):
        if path.exists():
            return path.stat().st_size
    return 0


def remote_size(remote: RemoteFile, timeout: float) -> int | None:
    """Return the size of a file in bytes without downloading it, or None if the server does not report it.

    Raises:
        DownloadError: The server cannot be reached.
    """
    try:
        return _request_metadata(remote, timeout).size
    except (requests.ConnectionError, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise DownloadError(f"{remote.url} cannot be reached ({type(error).__name__})") from error
    except (requests.RequestException, ValueError):
        return None


def _request_metadata(remote: RemoteFile, timeout: float) -> _ServerMetadata:
    """Request the metadata of a file without downloading it."""
    response = requests.head(remote.url, headers=_HEADERS, timeout=timeout, allow_redirects=True)
    return _parse_metadata(response, 0) if response.status_code == 200 else _ServerMetadata()


def download(
    remote: RemoteFile,
    policy: RetryPolicy,
    on_progress: Callable[[int], None] = lambda position: None,
    stop: threading.Event | None = None,
) -> str:
    """Download a file, or resume its download, and return how it was verified.

    If another program left an incomplete file at the target, the download resumes from it if a checksum can verify the
    result; otherwise that file stays until the new one is complete.

    Args:
        remote: The file.
        policy: When to retry.
        on_progress: Receives the number of bytes on disk.
        stop: Set this event to stop the download; the next run resumes it.

    Raises:
        DownloadError: The file does not exist, cannot be written, or failed `policy.attempts` times without progress.
    """
    stop = stop or threading.Event()
    try:
        partial = _PartialFile(remote.path)
        _adopt_existing(remote, partial, policy.timeout)
        best, left = partial.size, policy.attempts
        while True:
            try:
                on_progress(partial.size)
                if partial.metadata.size is None or partial.size != partial.metadata.size:
                    _transfer(remote, partial, policy.timeout, on_progress, stop)
                how = _verify_partial(remote, partial)
                partial.finish()
                return how
            except _RetryableError as error:
                left = policy.attempts if partial.size > best else left - 1
                best = max(best, partial.size)
                if left == 0 or stop.is_set():
                    raise DownloadError(f"{remote.url}: {error}") from error
                stop.wait(error.after or min(MAX_PAUSE, policy.pause * 2 ** (policy.attempts - left - 1)))
    except OSError as error:
        raise DownloadError(f"{remote.path} cannot be written: {error.strerror or error}") from error


def _adopt_existing(remote: RemoteFile, partial: _PartialFile, timeout: float) -> None:
    """Resume the download of another program if a checksum can verify it; it may be of another version of the file."""
    if partial.size:
        if partial.metadata == _ServerMetadata() and not remote.sha256:
            partial.discard()
        return
    if not remote.path.exists():
        return
    reported = _ServerMetadata()
    if not remote.sha256:
        with contextlib.suppress(requests.RequestException):
            reported = _request_metadata(remote, timeout)
    if remote.sha256 or reported.md5:
        partial.adopt(_ServerMetadata(md5=reported.md5))


def verify_file(remote: RemoteFile) -> str:
    """Verify a complete file and return how; raise DownloadError if it differs from the published file."""
    try:
        return _verify(remote, remote.path, None)
    except _VerificationError as error:
        raise DownloadError(f"{remote.path}: {error}: delete it and run again") from error


def _verify_partial(remote: RemoteFile, partial: _PartialFile) -> str:
    """Verify a complete partial file and return how; discard it and raise _RetryableError if it is wrong."""
    try:
        return _verify(remote, partial.path, partial.metadata.md5)
    except _VerificationError as error:
        partial.discard()
        raise _RetryableError(str(error)) from error


def _transfer(
    remote: RemoteFile,
    partial: _PartialFile,
    timeout: float,
    on_progress: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Download the rest of a partial file; raise _RetryableError if the connection breaks."""
    offset, before = partial.size, partial.metadata
    headers = dict(_HEADERS)
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if before.version:
            headers["If-Range"] = before.version
    try:
        with requests.get(remote.url, headers=headers, timeout=timeout, stream=True) as response:
            skip = _reconcile(remote, partial, response, offset)
            if response.ok:
                _receive(remote, partial, response.raw, skip, on_progress, stop)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        if isinstance(error, ValueError):  # an invalid address
            raise DownloadError(f"{remote.url}: {error}") from error
        raise _RetryableError(f"the connection broke after {partial.size:,} bytes ({type(error).__name__})") from error
    size = partial.metadata.size
    if size is not None and partial.size < size:
        raise _RetryableError(f"the connection broke after {partial.size:,} of {size:,} bytes")


def _reconcile(remote: RemoteFile, partial: _PartialFile, response: requests.Response, offset: int) -> int:
    """Store the server's metadata, discard a partial file that does not match, and return the bytes to skip."""
    if response.status_code in RETRY_STATUSES:
        wait = response.headers.get("Retry-After", "")
        raise _RetryableError(
            f"HTTP {response.status_code} {response.reason}", min(float(wait), 3600) if _COUNT.fullmatch(wait) else 0.0
        )
    if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{offset}":
        partial.metadata = replace(partial.metadata, size=offset)  # it is complete: the size reported before was wrong
        return 0
    if response.status_code == 416 or (
        response.status_code == 206 and not _range_matches(response, partial.metadata, offset)
    ):
        partial.discard()
        raise _RetryableError("the partial file does not match the file on the server")
    if response.status_code not in (200, 206):
        raise DownloadError(f"{remote.url}: HTTP {response.status_code} {response.reason}")
    now = _parse_metadata(response, offset if response.status_code == 206 else 0)
    if response.status_code == 206:
        partial.metadata = replace(now, md5=now.md5 or partial.metadata.md5)
        return 0
    is_same = now.version is not None and now.version == partial.metadata.version and now.size == partial.metadata.size
    if not is_same:  # the server sends the complete file; a partial file of another version is useless
        partial.discard()
    partial.metadata = now
    return partial.size


def _range_matches(response: requests.Response, before: _ServerMetadata, offset: int) -> bool:
    extent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not extent or int(extent[1]) != offset:
        return False
    return before.size is None or extent[3] in ("*", str(before.size))


def _parse_metadata(response: requests.Response, offset: int) -> _ServerMetadata:
    length = response.headers.get("Content-Length", "")
    size = offset + int(length) if _COUNT.fullmatch(length) else None
    md5 = re.search(r"md5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))  # Google's storage
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and version.startswith("W/"):  # a weak ETag: equivalent, but not the same bytes
        version = None
    return _ServerMetadata(size, version, base64.b64decode(md5[1]).hex() if md5 else None)


def _receive(
    remote: RemoteFile,
    partial: _PartialFile,
    stream: urllib3.response.BaseHTTPResponse,
    skip: int,
    on_progress: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Append the response to the partial file, without its first `skip` bytes."""
    with partial.path.open("ab") as file:
        for chunk in stream.stream(CHUNK, decode_content=False):
            if stop.is_set():
                raise _RetryableError("stopped")
            new = chunk[skip:]
            skip -= len(chunk) - len(new)
            if new and file.tell() == 0 and not new.startswith(remote.magic[: len(new)]):
                raise DownloadError(f"{remote.url} sends another file: it starts with {new[:16]!r}")
            file.write(new)
            on_progress(file.tell())


class _VerificationError(Exception):
    """A complete file differs from the published one."""


def _verify(remote: RemoteFile, path: Path, md5: str | None) -> str:
    """Verify a complete file by the best available method and return which."""
    with path.open("rb") as file:
        if not file.read(len(remote.magic)) == remote.magic:
            raise _VerificationError("its first bytes are those of another file type")
    if remote.sha256:
        if hash_file(path, "sha256") != remote.sha256:
            raise _VerificationError("its SHA-256 is not the published one")
        return "SHA-256 as published"
    if md5:
        if hash_file(path, "md5") != md5:
            raise _VerificationError("its MD5 is not the one that the server reports")
        return "MD5 as reported by the server"
    if path.name.endswith((".tar", ".tar.gz")):
        try:
            count = sum(1 for _ in iter_members(path))
        except TruncatedArchive as error:
            raise _VerificationError(f"the archive is truncated: {error}") from error
        return f"read to the end: {count:,} files, no published checksum"
    return "size only: no published checksum"
