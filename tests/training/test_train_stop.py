"""A stop request ends a training with exit code 75, at any time and from any sender."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.training.stop_signals import stop_signals
from tests.helpers.ranks import ROOT, fresh_env
from tests.helpers.training_caches import write_cache
from tests.training.test_train import SMALL, logged_steps, rows

TRAIN = [sys.executable, str(ROOT / "pipeline" / "train.py"), "+exp=delay_gpt2"]
MESSAGE = "stopped on request before training began\n"


def wait_for_handlers(pid: int) -> None:
    """Wait until a process catches SIGTERM, which is shortly after Python has started."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    raise AssertionError("it never catches SIGTERM")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_signal_during_the_imports_exits_with_75(tmp_path: Path, name: str) -> None:
    process = subprocess.Popen(TRAIN, cwd=tmp_path, env=fresh_env(tmp_path), stderr=subprocess.PIPE, text=True)
    wait_for_handlers(process.pid)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (EXIT_REQUEUE, MESSAGE)


def test_rank_that_starts_exits_with_its_launcher(tmp_path: Path) -> None:
    """The launcher is a Python program of that name; its rank waits for another rank that never starts."""
    launcher = tmp_path / "deepspeed"
    launcher.write_text("import subprocess, sys\nsubprocess.run(sys.argv[1:])\n")
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    process = subprocess.Popen(
        [sys.executable, str(launcher), *TRAIN], cwd=tmp_path, env={**fresh_env(tmp_path), **alone},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        time.sleep(0.01)
    wait_for_handlers(int(children.read_text()))
    time.sleep(0.5)  # until it has looked at its launcher
    process.kill()
    stdout, _ = process.communicate(timeout=60)
    assert stdout == MESSAGE


def test_nohup_ignores_sighup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in stop_signals()


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_signals_that_the_parent_ignores_still_stop(name: str) -> None:
    """As in the shells of jobs/train.sbatch, which ignore SIGUSR1."""
    before = signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        assert getattr(signal, name) in stop_signals()
    finally:
        signal.signal(getattr(signal, name), before)


@pytest.mark.slow
def test_closed_terminal_stops_a_training_with_75(tmp_path: Path) -> None:
    """SIGHUP arrives, and nothing can be printed any more."""
    cache, run = write_cache(tmp_path / "cache"), tmp_path / "run"
    overrides = [f"shards={cache}", f"run={run}", *SMALL, "trainer.steps=100000", "trainer.val_every=0"]
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*TRAIN, *overrides, "trainer.save_every=0"], cwd=tmp_path, env=fresh_env(tmp_path), stdin=child, stdout=child,
        stderr=child, start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )  # fmt: skip
    os.close(child)
    while not ((run / "metrics.jsonl").exists() and 3 in logged_steps(run)):
        assert process.poll() is None, os.read(parent, 100_000)
        os.read(parent, 100_000)
    os.close(parent)
    assert process.wait(60) == EXIT_REQUEUE
    assert (run / "checkpoints" / f"step-{max(rows(run))}" / "complete.json").is_file()
    assert "stopped on request" in (run / "log.txt").read_text()
