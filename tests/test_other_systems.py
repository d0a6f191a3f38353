"""macOS and Windows, as far as Linux can show it: their missing modules and functions are removed in a subprocess."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from pipeline.common import machine
from tests.helpers.preprocess_runs import tones
from tests.helpers.warm_python import run_python

ROOT = Path(__file__).parents[1]


def run_as(system: str, *arguments: str) -> str:
    """The output of `tests.helpers.other_system`."""
    done = run_python(["-m", "tests.helpers.other_system", system, *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_can_be_imported_on_macos() -> None:
    assert int(run_as("darwin").split()[0]) > 200


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])
def test_folder_becomes_a_model_that_generates(system: str, tmp_path: Path) -> None:
    """Every module can be imported, too."""
    tones(tmp_path / "sounds", 12)
    output = run_as(system, str(tmp_path))
    assert int(output.split()[0]) > 200
    assert "plain PyTorch on one device" in output and "resuming at step 2" in output
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4 and (tmp_path / "sound.wav").is_file()


def test_only_one_module_asks_for_the_system() -> None:
    """Modules and names that some systems do not have are used in `common/machine.py` only."""
    of_some_systems = {"fcntl", "resource", "msvcrt", "pwd", "grp", "termios"}
    functions = {
        "pread",
        "preadv",
        "sched_getaffinity",
        "getuid",
        "getpgid",
        "setitimer",
        "SIGUSR1",
        "SIGALRM",
        "SIGKILL",
    }
    for file in (ROOT / "pipeline").rglob("*.py"):
        nodes = [*ast.walk(ast.parse(file.read_text()))]
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        attributes = {(ast.unparse(n.value), n.attr) for n in nodes if isinstance(n, ast.Attribute)}
        used = {attribute for owner, attribute in attributes if owner in ("os", "signal")} & functions
        asks = ("sys", "platform") in attributes or modules & of_some_systems or used
        assert not asks or file.name == "machine.py", file


def test_lock_is_exclusive_unless_shared(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open() as second:
        machine.lock_file(first, shared=True)
        machine.lock_file(second, shared=True, wait=False)
        with pytest.raises(BlockingIOError):
            machine.lock_file(first, wait=False)
