"""Progress is one bar on a terminal, and one line per minute elsewhere."""

import errno
import os
import pty
import subprocess
import sys

import pytest

from pipeline.preprocessing import progress
from pipeline.preprocessing.progress import Progress


def test_one_line_per_minute_without_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(clips=1000, done=100) as shown:
        for _ in range(20):
            now += 20.0
            shown.advance(10, 40.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6, "of 400 seconds"
    assert lines[-1] == "280 of 1,000 clips · 0.20 h of audio · 2 x real time · 24 min left"


def read(terminal: int) -> str:
    """Output of a terminal; empty once the writer has closed it."""
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError as error:
        assert error.errno == errno.EIO
        return ""


def test_one_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    script = """
from pipeline.preprocessing.progress import Progress
with Progress(clips=40, done=10) as shown:
    for _ in range(3):
        shown.advance(10, 3600.0)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env={**os.environ, "COLUMNS": "120"})
    os.close(theirs)
    seen = "".join(iter(lambda: read(ours), ""))
    assert process.wait(60) == 0
    assert "40/40" in seen and "3.00 h of audio" in seen and "x real time" in seen


def test_time_left_counts_clips_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    with Progress(clips=300, done=100) as shown:
        shown.advance(100, 400.0)
        monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
        assert shown.line() == "200 of 300 clips · 0.11 h of audio · 4 x real time · 2 min left"
