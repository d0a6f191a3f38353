"""How every entry point meets its user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = """
import sys
sys.path.insert(0, {root!r})
from pipeline.config import entry
from pipeline.errors import InputError

@entry("preprocess")
def main(cfg):
    "A task."
    if cfg.part == "refuse":
        raise InputError("part=refuse: give another")
    print("out", cfg.out, cfg.codec.codebooks)
    return 75 if cfg.part == "stop" else None

__doc__ = "What it does."
main()
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT)), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "out shards/nsynth 8"),
        (["data=notes", "codec.codebooks=4"], 0, "out shards/notes 4"),
        (["--local_rank=3"], 0, "out shards/nsynth 8"),
        (["part=stop"], 75, "out shards/nsynth 8"),
        (["-m", "data=notes,nsynth"], 0, "out shards/notes 8\nout shards/nsynth 8"),
        (["part=refuse"], 2, "error: part=refuse: give another"),
        (["codec.codebks=3"], 2, "error: there is no setting 'codec.codebks'; did you mean 'codec.codebooks'?"),
        (["dta=notes"], 2, "error: there is no setting 'dta'; did you mean 'data'?"),
        (["codec=foo"], 2, "error: In 'preprocess': Could not find 'codec/foo'"),
        (["--help"], 0, "codec: encodec_24khz, encodec_embedded"),
    ],
)
def test_a_command_line_is_obeyed_or_refused_in_one_line(words: list[str], code: int, said: str) -> None:
    done = run(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    if code == 2:
        assert done.stderr.count("\n") == 1 and not done.stdout


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", COMMAND.format(root=str(ROOT)), "-m", "data=notes,nsynth"], cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_a_sweep(tmp_path: Path) -> None:
    """TERM ends what runs with 75; the combinations behind it are left for the next time."""
    words = ["-m", "part=stop,1/1", "codec.codebooks=4"]
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT)), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75 and done.stdout.count("out shards/nsynth 4") == 1, done.stdout + done.stderr
