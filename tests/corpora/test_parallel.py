"""Parallel downloads: each result is logged, and an interrupt stops all of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common import console
from pipeline.corpora.download import parallel as module
from pipeline.corpora.download.http import DownloadError, RemoteFile
from pipeline.corpora.download.parallel import download_all

REMOTES = {RemoteFile(f"http://nowhere/{n}", Path(f"file-{n}")): 1000 * n for n in range(1, 6)}
At = Callable[[int], None]


def work(remote: RemoteFile, at: At, stop: threading.Event) -> str:
    for position in range(0, REMOTES[remote] + 1, 500):
        at(position)
    if remote.path.name == "file-3":
        raise DownloadError("file-3 is lost")
    return "as published"


@pytest.mark.parametrize("terminal", [False, True])
def test_every_result_is_logged(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert download_all(REMOTES, work, 2) == 1
    errors = capsys.readouterr().err
    assert all(f"file-{n}: as published" in errors for n in (1, 2, 4, 5))
    assert "error: file-3 is lost" in errors


def test_progress_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_INTERVAL", 0)
    download_all(REMOTES, work, 1)
    assert "0.00 of 0.00 GB" in capsys.readouterr().err


def test_interrupt_stops_all_downloads() -> None:
    """Ctrl-C reaches the main thread; running downloads see the event and keep their bytes; no other file starts."""
    started: list[RemoteFile] = []

    def interrupted(remote: RemoteFile, at: At, stop: threading.Event) -> str:
        started.append(remote)
        if len(started) == 1:
            raise KeyboardInterrupt
        assert stop.wait(5), "the stop event was never set"
        raise DownloadError("stopped")

    with pytest.raises(KeyboardInterrupt):
        download_all(REMOTES, interrupted, 2)
    assert len(started) < len(REMOTES)


def test_interrupt_cancels_queued_files_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued files are cancelled before running downloads are stopped, however slow those are."""
    started: list[RemoteFile] = []
    second = threading.Event()

    class Slow(module.ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            time.sleep(0.1)
            super().shutdown(wait, cancel_futures=cancel_futures)

    def interrupt(*_: object) -> None:
        second.wait(5)
        raise KeyboardInterrupt

    def transfer(remote: RemoteFile, at: At, stop: threading.Event) -> str:
        started.append(remote)
        if len(started) == 2:
            second.set()
            stop.wait(5)
        return "as published"

    monkeypatch.setattr(module, "ThreadPoolExecutor", Slow)
    monkeypatch.setattr(module.ProgressDisplay, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_all(REMOTES, transfer, 1)
    assert len(started) == 2
