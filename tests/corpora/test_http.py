"""Files are downloaded completely despite faults, and never have their name before they are complete."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpora.download.http import DownloadError, RemoteFile, RetryPolicy, download, remote_size, verify_file
from tests.helpers.corpora import pack
from tests.helpers.download_server import Site, serve

CONTENT = random.Random(0).randbytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
HASTY = RetryPolicy(attempts=3, timeout=0.5, pause=0.01)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site({"/file.bin": CONTENT})) as site:
        yield site


@pytest.fixture
def remote(site: Site, tmp_path: Path) -> RemoteFile:
    return RemoteFile(f"{site.url}/file.bin", tmp_path / "data" / "file.bin", SUM)


def left(remote: RemoteFile) -> list[str]:
    return sorted(path.name for path in remote.path.parent.iterdir())


def test_file_is_complete_under_its_name(remote: RemoteFile) -> None:
    positions: list[int] = []
    assert download(remote, HASTY, positions.append) == "SHA-256 as published"
    assert remote.path.read_bytes() == CONTENT
    assert left(remote) == ["file.bin"]
    assert positions[-1] == len(CONTENT)
    assert remote_size(remote, 1) == len(CONTENT)


FAULTS: dict[str, tuple[list[str], int]] = {
    "busy at first": (["503", "503"], 3),
    "breaks twice": (["break 100000", "break 50000"], 3),
    "breaks more often than attempts allow, with progress": (["break 40000"] * 6, 7),
    "breaks, then ignores the range": (["break 100000", "whole"], 2),
    "ignores the range and breaks before new bytes": (["break 100000", "whole", "whole", "whole"], 2),
    "reports no length": (["no length"], 1),
    "claims too many bytes, then breaks": (["claim 400000"], 2),
    "claims too few bytes": (["claim 1000"], 2),
    "rejects the range, so it starts again": (["break 1000", "gone range"], 3),
    "sends no data": (["hang"], 2),
    "claims an invalid number": (["claim \u00b2"], 1),
    "requests an invalid pause": (["503 after \u00b2"], 2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_download_from_a_faulty_server(name: str, site: Site, remote: RemoteFile) -> None:
    site.faults["/file.bin"], requests = [*FAULTS[name][0]], FAULTS[name][1]
    download(remote, HASTY)
    assert remote.path.read_bytes() == CONTENT
    assert left(remote) == ["file.bin"]
    assert len(site.requests) == requests


def test_downloaded_bytes_are_not_requested_again(site: Site, remote: RemoteFile) -> None:
    site.faults["/file.bin"] = ["break 100000", "break 50000"]
    download(remote, HASTY)
    assert [first for _, first in site.requests] == [0, 100_000, 150_000]


@given(faults=st.lists(st.sampled_from(["503", "break 70000", "break 0", "whole", "no length"]), max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_faults_never_leave_a_wrong_file(faults: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any faults of the server, the file under its name is correct or missing."""
    path = tmp_path_factory.mktemp("runs") / "file.bin"
    with serve(Site({"/file.bin": CONTENT}, {"/file.bin": faults})) as site:
        for _ in range(10):
            try:
                download(RemoteFile(f"{site.url}/file.bin", path, SUM), RetryPolicy(1, 0.5, 0.001))
                break
            except DownloadError:
                assert not path.exists()
    assert path.read_bytes() == CONTENT


def test_stopped_download_is_resumed(site: Site, remote: RemoteFile) -> None:
    site.faults["/file.bin"] = ["break 120000", "break 0"]
    with pytest.raises(DownloadError, match=r"file\.bin: the connection broke after 120,000 bytes"):
        download(remote, RetryPolicy(1, 0.5, 1.0))
    assert not remote.path.exists()
    download(remote, HASTY)
    assert remote.path.read_bytes() == CONTENT
    assert site.requests[-1] == ("/file.bin", 120_000)


def test_stop_keeps_the_partial_file(site: Site, tmp_path: Path) -> None:
    big = random.Random(1).randbytes(8 << 20)
    site.files["/big.bin"] = big
    remote = RemoteFile(f"{site.url}/big.bin", tmp_path / "big.bin", hashlib.sha256(big).hexdigest())
    stop = threading.Event()
    with pytest.raises(DownloadError, match="stopped"):
        download(remote, HASTY, lambda position: stop.set() if position else None, stop)
    assert not remote.path.exists()
    download(remote, HASTY)
    assert site.requests[-1][1] > 0
    assert remote.path.read_bytes() == big


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etags", [True, False])
def test_changed_file_is_downloaded_again(site: Site, remote: RemoteFile, ranges: bool, etags: bool) -> None:
    site.ranges, site.etags = ranges, etags
    site.faults["/file.bin"] = ["break 120000", "break 0"]
    with pytest.raises(DownloadError):
        download(remote, RetryPolicy(1, 0.5, 1.0))
    site.files["/file.bin"] = new = CONTENT[::-1]
    download(RemoteFile(remote.url, remote.path, hashlib.sha256(new).hexdigest()), HASTY)
    assert remote.path.read_bytes() == new


def test_partial_file_of_another_program_is_completed(site: Site, remote: RemoteFile) -> None:
    remote.path.parent.mkdir()
    remote.path.write_bytes(CONTENT[:90_000])
    download(remote, HASTY)
    assert remote.path.read_bytes() == CONTENT
    assert site.requests == [("/file.bin", 90_000)]


@pytest.mark.parametrize("there", [CONTENT + b"more", b"x" * 90_000, b"x" * len(CONTENT)])
def test_wrong_file_of_another_program_is_replaced(remote: RemoteFile, there: bytes) -> None:
    remote.path.parent.mkdir()
    remote.path.write_bytes(there)
    download(remote, HASTY)
    assert remote.path.read_bytes() == CONTENT


@pytest.mark.parametrize("md5", [False, True])
def test_unverifiable_partial_file_is_not_used(site: Site, tmp_path: Path, md5: bool) -> None:
    """Without a checksum, a mix of two versions of a file would not be detected."""
    site.md5 = md5
    remote = RemoteFile(f"{site.url}/file.bin", tmp_path / "file.bin")
    remote.path.write_bytes(old := CONTENT[::-1][:90_000])
    site.faults["/file.bin"] = ["break 100000", "404"]
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(remote, HASTY)
    assert md5 or remote.path.read_bytes() == old, "the old file stays until the new one is complete"
    download(remote, HASTY)
    assert remote.path.read_bytes() == CONTENT
    assert left(remote) == ["file.bin"]


def test_partial_file_is_completed_if_md5_is_reported(site: Site, tmp_path: Path) -> None:
    site.md5 = True
    remote = RemoteFile(f"{site.url}/file.bin", tmp_path / "file.bin")
    remote.path.write_bytes(CONTENT[:90_000])
    assert download(remote, HASTY) == "MD5 as reported by the server"
    assert site.requests == [("/file.bin", 90_000)]


def test_wrong_checksum_never_gets_the_name(site: Site, remote: RemoteFile) -> None:
    site.files["/file.bin"] = b"y" * len(CONTENT)
    with pytest.raises(DownloadError, match=r"file\.bin: its SHA-256 is not the published one"):
        download(remote, HASTY)
    assert left(remote) == []
    assert len(site.requests) == HASTY.attempts


def test_md5_of_the_server_is_verified(site: Site, tmp_path: Path) -> None:
    site.md5 = True
    site.faults["/file.bin"] = ["break 1000", "break 5000"]
    remote = RemoteFile(f"{site.url}/file.bin", tmp_path / "file.bin")
    assert download(remote, HASTY) == "MD5 as reported by the server"
    site.faults["/file.bin"] = ["claim 1000"]
    short = RemoteFile(f"{site.url}/file.bin", tmp_path / "again.bin")
    download(short, HASTY)
    assert short.path.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["notes.tar.gz", "notes.tar"])
def test_archives_without_checksum_are_read_to_the_end(site: Site, tmp_path: Path, name: str) -> None:
    content = pack(tmp_path / name, {"a": CONTENT, "b": b"b"}).read_bytes()
    site.files = {f"/{name}": content, f"/cut-{name}": content[:-20_000]}
    remote = RemoteFile(f"{site.url}/{name}", tmp_path / "new" / name)
    assert download(remote, HASTY) == "read to the end: 2 files, no published checksum"
    assert remote.path.read_bytes() == content
    truncated = RemoteFile(f"{site.url}/cut-{name}", tmp_path / "new" / f"cut-{name}")
    with pytest.raises(DownloadError, match="the archive is truncated"):
        download(truncated, HASTY)
    assert left(remote) == [name]


def test_login_page_instead_of_file_is_an_error(site: Site, tmp_path: Path) -> None:
    site.files["/x.tar.gz"] = b"<html>Please log in</html>"
    with pytest.raises(DownloadError, match=r"x\.tar\.gz sends another file: it starts with b'<html>Please log'"):
        download(RemoteFile(f"{site.url}/x.tar.gz", tmp_path / "x.tar.gz", magic=b"\x1f\x8b"), HASTY)
    assert len(site.requests) == 1


def test_missing_file_is_not_retried(site: Site, remote: RemoteFile) -> None:
    site.files.clear()
    with pytest.raises(DownloadError, match=r"file\.bin: HTTP 404"):
        download(remote, HASTY)
    assert len(site.requests) == 1
    assert remote_size(remote, 1) == 0 or remote_size(remote, 1) is None


def test_retry_after_is_respected(site: Site, remote: RemoteFile) -> None:
    site.faults["/file.bin"] = ["503 after 1"]
    waits: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    download(remote, HASTY, stop=Clock())
    assert waits == [1.0]


def test_unreachable_server_is_an_error(remote: RemoteFile) -> None:
    gone = RemoteFile("http://127.0.0.1:9/file.bin", remote.path)
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/file\.bin cannot be reached"):
        remote_size(gone, 0.5)
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/file\.bin: the connection broke"):
        download(gone, HASTY)
    with pytest.raises(DownloadError, match="no address"):
        download(RemoteFile("no address", remote.path), HASTY)


def test_unwritable_folder_is_an_error(remote: RemoteFile) -> None:
    remote.path.parent.write_bytes(b"a file in the way")
    with pytest.raises(DownloadError, match=r"data/file\.bin cannot be written"):
        download(remote, HASTY)


def test_verify_file(remote: RemoteFile, corrupt: Callable[[Path], None]) -> None:
    download(remote, HASTY)
    assert verify_file(remote) == "SHA-256 as published"
    corrupt(remote.path)
    with pytest.raises(DownloadError, match=r"file\.bin: its SHA-256 is not .* delete it"):
        verify_file(remote)


@pytest.fixture
def corrupt() -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[1234] ^= 1
        path.write_bytes(content)

    return flip
