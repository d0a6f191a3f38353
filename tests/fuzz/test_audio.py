"""Damaged audio files, read in a child process, since a decoder may crash its process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.damage import HOME, TRIES

HANG = 60  # seconds per input


def listened(count: int, seed: int, note: Path) -> list[str]:
    """Return the failures of `count` inputs, one line each: unexpected exceptions, crashes, hangs."""
    first, wrong = 0, []
    while first < count:
        note.write_text(f"{first:12d}")
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "tests.fuzz.decode_damaged",
            str(first),
            str(count),
            str(seed),
            str(note),
        ]
        env = {**os.environ, "PYTHONPATH": str(HOME)}
        with (
            (note.parent / "out").open("w+") as out,
            subprocess.Popen(command, cwd=HOME, env=env, stdout=out, stderr=subprocess.STDOUT, text=True) as child,
        ):
            hangs = not _ends(child, note)
            if hangs:
                child.kill()
            child.wait()
            lines = (note.parent / "out").read_text().splitlines()
        wrong += [line for line in lines if line.split(":")[0].isdecimal()]
        if lines and lines[-1] == "done":
            break
        at = int(note.read_text())
        wrong.append(f"{at}: {'hangs' if hangs else f'exit code {child.returncode}'}: {' '.join(lines[-20:])[:1500]}")
        first = at + 1
    return wrong


def _ends(child: subprocess.Popen, note: Path) -> bool:
    """Whether the child ends, rather than hang at one input."""
    at, since = "", time.monotonic()
    while time.monotonic() - since < HANG:
        try:
            child.wait(1)
            return True
        except subprocess.TimeoutExpired:
            now = note.read_text()
            at, since = (at, since) if now == at else (now, time.monotonic())
    return False


@pytest.mark.timeout(300 + TRIES // 10)
def test_damaged_audio_files(tmp_path: Path) -> None:
    wrong = listened(TRIES or 300, int(os.environ.get("FUZZ_SEED", "0")), tmp_path / "note")
    assert not wrong, f"{len(wrong)} inputs:\n" + "\n".join(wrong[:20])
