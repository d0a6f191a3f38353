"""docs/extending.md: every example runs from outside the package, as a plug-in of the real commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.documented_folder import write_tone

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # its first line is its file name
KINDS = re.findall(r"^\| an? (.+?) \|", TEXT, re.MULTILINE)
SECTIONS = {
    title.lower().removeprefix("an ").removeprefix("a "): dict(BLOCK.findall(body))
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
EXTENSIONS = {kind: files for kind, files in SECTIONS.items() if files}


def modules(files: Mapping[str, str]) -> list[str]:
    """The names of the modules among files, tests excluded."""
    return [Path(name).stem for name in files if name.endswith(".py") and not name.startswith("test_")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the package with the files of all examples, three recordings and a table that lists them."""
    root = tmp_path_factory.mktemp("extensions")
    for files in EXTENSIONS.values():
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
    rows = [("a.wav", "train"), ("b.wav", "train"), ("c.wav", "valid"), ("d.wav", "valid")]
    for number, (name, _) in enumerate(rows):
        write_tone(root / "sounds" / name, 220 * 2 ** (number / 4), 1.0)
    (root / "sounds" / "clips.csv").write_text("path,split,label\n" + "".join(f"{a},{b},tone\n" for a, b in rows))
    return root


def run(folder: Path, *command: str) -> str:
    """Run a program in the folder; it has to succeed. Returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_kind_has_an_example_of_one_file() -> None:
    """A new extension is one module, one yaml where it is a choice, and one test."""
    for kind, files in EXTENSIONS.items():
        assert len(modules(files)) == 1, kind
        assert sum(name.startswith("test_") for name in files) == 1, kind
        assert sum(name.startswith("conf/") for name in files) == len(files) - 2 <= 1, kind


def test_the_tests_of_the_examples_pass(folder: Path) -> None:
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder))
