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
    """A failure after which a new attempt may succeed. after: seconds to wait, as the server requests."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass
class _ServerMetadata:
    """What a server reports about a file: size in bytes, version (ETag or date) and MD5 in hex."""

    size: int | None = None
    version: str | None = None
    md5: str | None = None


def bytes_on_disk(remote: RemoteFile) -> int:
    """Return the number of bytes of a file that are on disk."""
    return next((path.stat().st_size for path in (_partial_path(remote.path), remote.path) if path.exists()), 0)


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
        file = _Download(remote, policy.timeout, on_progress, stop)
        file.adopt_existing()
        best, left = file.size, policy.attempts
        while True:
            try:
                return file.complete()
            except _RetryableError as error:
                left = policy.attempts if file.size > best else left - 1
                best = max(best, file.size)
                if left == 0 or stop.is_set():
                    raise DownloadError(f"{remote.url}: {error}") from error
                stop.wait(error.after or min(MAX_PAUSE, policy.pause * 2 ** (policy.attempts - left - 1)))
    except OSError as error:
        raise DownloadError(f"{remote.path} cannot be written: {error.strerror or error}") from error


def verify_file(remote: RemoteFile) -> str:
    """Verify a complete file and return how; raise DownloadError if it differs from the published file."""
    try:
        return _verify(remote, remote.path, None)
    except _RetryableError as error:
        raise DownloadError(f"{remote.path}: {error}: delete it and run again") from error


def _partial_path(target: Path) -> Path:
    return target.with_name(f".partial.{target.name}")  # keeps the suffix, which determines how an archive is read


class _Download:
    """The download of a file to a partial file, with the server's metadata beside it; see `download`."""

    def __init__(
        self, remote: RemoteFile, timeout: float, on_progress: Callable[[int], None], stop: threading.Event
    ) -> None:
        self._remote, self._timeout, self._on_progress, self._stop = remote, timeout, on_progress, stop
        self._partial = _partial_path(remote.path)
        self._metadata_path = self._partial.with_name(f"{self._partial.name}.json")
        remote.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes of the partial file."""
        return self._partial.stat().st_size if self._partial.exists() else 0

    @property
    def _metadata(self) -> _ServerMetadata:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _ServerMetadata(**json.loads(self._metadata_path.read_text()))
        return _ServerMetadata()

    @_metadata.setter
    def _metadata(self, metadata: _ServerMetadata) -> None:
        self._metadata_path.write_text(json.dumps(vars(metadata)))

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._metadata_path.unlink(missing_ok=True)

    def adopt_existing(self) -> None:
        """Resume the download of another program if a checksum can verify it; it may be of another version."""
        if self.size:
            if self._metadata == _ServerMetadata() and not self._remote.sha256:
                self._discard()
            return
        if not self._remote.path.exists():
            return
        reported = _ServerMetadata()
        if not self._remote.sha256:
            with contextlib.suppress(requests.RequestException):
                reported = _request_metadata(self._remote, self._timeout)
        if self._remote.sha256 or reported.md5:
            self._remote.path.replace(self._partial)
            self._metadata = _ServerMetadata(md5=reported.md5)

    def complete(self) -> str:
        """Download the rest, verify the file, give it its name, and return how it was verified.

        Raises:
            _RetryableError: The connection broke, or the file is wrong and was discarded.
        """
        self._on_progress(self.size)
        if self._metadata.size is None or self.size != self._metadata.size:
            self._transfer()
        try:
            how = _verify(self._remote, self._partial, self._metadata.md5)
        except _RetryableError:
            self._discard()
            raise
        with self._partial.open("rb+") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._remote.path)
        self._metadata_path.unlink(missing_ok=True)
        return how

    def _transfer(self) -> None:
        offset, version, headers = self.size, self._metadata.version, dict(_HEADERS)
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            with requests.get(self._remote.url, headers=headers, timeout=self._timeout, stream=True) as response:
                skip = self._reconcile(response, offset)
                if response.ok:
                    self._receive(response.raw, skip)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
            if isinstance(error, ValueError):  # an invalid address
                raise DownloadError(f"{self._remote.url}: {error}") from error
            reason = f"the connection broke after {self.size:,} bytes ({type(error).__name__})"
            raise _RetryableError(reason) from error
        size = self._metadata.size
        if size is not None and self.size < size:
            raise _RetryableError(f"the connection broke after {self.size:,} of {size:,} bytes")

    def _reconcile(self, response: requests.Response, offset: int) -> int:
        """Store the server's metadata, discard a partial file that does not match, and return the bytes to skip."""
        status, before = response.status_code, self._metadata
        if status in RETRY_STATUSES:
            wait = response.headers.get("Retry-After", "")
            after = min(float(wait), 3600) if _COUNT.fullmatch(wait) else 0.0
            raise _RetryableError(f"HTTP {status} {response.reason}", after)
        if status == 416 and response.headers.get("Content-Range") == f"bytes */{offset}":
            self._metadata = replace(before, size=offset)  # it is complete: the size reported before was wrong
            return 0
        if status == 416 or (status == 206 and not _range_matches(response, before, offset)):
            self._discard()
            raise _RetryableError("the partial file does not match the file on the server")
        if status not in (200, 206):
            raise DownloadError(f"{self._remote.url}: HTTP {status} {response.reason}")
        now = _parse_metadata(response, offset if status == 206 else 0)
        if status == 206:
            self._metadata = replace(now, md5=now.md5 or before.md5)
            return 0
        if now.version is None or (now.version, now.size) != (before.version, before.size):
            self._discard()  # the server sends the complete file; a partial file of another version is useless
        self._metadata = now
        return self.size

    def _receive(self, stream: urllib3.response.BaseHTTPResponse, skip: int) -> None:
        """Append the response to the partial file, without its first `skip` bytes."""
        magic = self._remote.magic
        with self._partial.open("ab") as file:
            for chunk in stream.stream(CHUNK, decode_content=False):
                if self._stop.is_set():
                    raise _RetryableError("stopped")
                new = chunk[skip:]
                skip -= len(chunk) - len(new)
                if new and file.tell() == 0 and not new.startswith(magic[: len(new)]):
                    raise DownloadError(f"{self._remote.url} sends another file: it starts with {new[:16]!r}")
                file.write(new)
                self._on_progress(file.tell())


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


def _verify(remote: RemoteFile, path: Path, md5: str | None) -> str:
    """Verify a complete file by the best available method and return which; raise _RetryableError if it is wrong."""
    with path.open("rb") as file:
        if not file.read(len(remote.magic)) == remote.magic:
            raise _RetryableError("its first bytes are those of another file type")
    if remote.sha256:
        if hash_file(path, "sha256") != remote.sha256:
            raise _RetryableError("its SHA-256 is not the published one")
        return "SHA-256 as published"
    if md5:
        if hash_file(path, "md5") != md5:
            raise _RetryableError("its MD5 is not the one that the server reports")
        return "MD5 as reported by the server"
    if path.name.endswith((".tar", ".tar.gz")):
        try:
            count = sum(1 for _ in iter_members(path))
        except TruncatedArchive as error:
            raise _RetryableError(f"the archive is truncated: {error}") from error
        return f"read to the end: {count:,} files, no published checksum"
    return "size only: no published checksum"
