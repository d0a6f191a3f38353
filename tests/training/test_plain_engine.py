"""Training without DeepSpeed: the losses of ZeRO-0, and checkpoints that either of the two resumes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.ranks import fresh_env
from tests.helpers.training_caches import write_cache
from tests.helpers.warm_python import run_python
from tests.training.test_train import SMALL, rows, train_here

# as `python -m pipeline.train` where DeepSpeed cannot be imported
PLAIN = """
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("deepspeed", "pipeline")]:
    del sys.modules[name]
sys.modules["deepspeed"] = None
runpy.run_module("pipeline.train", run_name="__main__", alter_sys=True)
"""
ACCUMULATE = ("trainer.micro_batch=2", "trainer.gradient_accumulation_steps=2", "model.dropout=0.1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "several lengths", lengths=(12, 5))


def train_plain(cache: Path, run: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Train without DeepSpeed, in a process of its own."""
    arguments = ["+exp=delay_gpt2", f"shards='{cache}'", f"run={run}", *SMALL, *ACCUMULATE, *overrides]
    return run_python(["-c", PLAIN, *arguments], env=fresh_env(run.parent / "extensions") | env)


def train_by_deepspeed(cache: Path, run: Path, *overrides: str) -> None:
    train_here(Path(f"'{cache}'"), run, *ACCUMULATE, *overrides)


SIX_STEPS = ("trainer.steps=6", "trainer.save_every=3")


@pytest.fixture(scope="module")
def plain(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps without DeepSpeed."""
    run = tmp_path_factory.mktemp("plain") / "run"
    done = train_plain(cache, run, *SIX_STEPS)
    assert done.returncode == 0 and "plain PyTorch on one device (cpu) in fp32" in done.stdout, done.stderr
    return run


def test_losses_and_checkpoints_are_those_of_zero0(here: None, cache: Path, plain: Path, tmp_path: Path) -> None:
    """Six steps by either, or three steps by one and three by the other: the same losses, bit for bit."""
    zero0, run = tmp_path / "zero0", tmp_path / "run"
    train_by_deepspeed(cache, zero0, *SIX_STEPS, "deepspeed=zero0")
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert rows(zero0, name) == rows(plain, name)
    last = {step: loss for step, loss in rows(plain).items() if step > 3}
    train_by_deepspeed(cache, run, *SIX_STEPS, "deepspeed=zero0", f"resume={plain}/checkpoints/step-3")
    assert rows(run) == last
    done = train_plain(cache, tmp_path / "plain", *SIX_STEPS, f"resume={zero0}/checkpoints/step-3")
    assert done.returncode == 0 and rows(tmp_path / "plain") == last, done.stderr


def test_several_ranks_are_refused(cache: Path, tmp_path: Path) -> None:
    done = train_plain(cache, tmp_path / "run", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2 and "WORLD_SIZE=2: several ranks need DeepSpeed" in done.stderr


def test_checkpoint_of_zero1_needs_deepspeed(here: None, cache: Path, tmp_path: Path) -> None:
    train_by_deepspeed(cache, tmp_path / "run", "trainer.steps=2", "deepspeed=zero1")
    done = train_plain(cache, tmp_path / "run", "trainer.steps=4")
    assert done.returncode == 2 and "optimizer state of ZeRO stage 1" in done.stderr
