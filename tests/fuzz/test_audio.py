"""Sound files, damaged: read in a process of its own, for what a decoder does to its process is looked for too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.damage import HOME, TRIES

HANG = 60  # seconds at one input


def listened(count: int, seed: int, note: Path) -> list[str]:
    """What went wrong with so many inputs, a line each: exceptions that are none of ours, deaths, hangs."""
    first, wrong = 0, []
    while first < count:
        note.write_text(f"{first:12d}")
        words = [
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
            subprocess.Popen(words, cwd=HOME, env=env, stdout=out, stderr=subprocess.STDOUT, text=True) as child,
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
    """Whether the child comes to its end, rather than stay at one input."""
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
def test_damaged_sounds(tmp_path: Path) -> None:
    wrong = listened(TRIES or 300, int(os.environ.get("FUZZ_SEED", "0")), tmp_path / "note")
    assert not wrong, f"{len(wrong)} inputs:\n" + "\n".join(wrong[:20])
