"""Every choice of conf/deepspeed trains, offload included, and each learns the same from the same clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.every_zero import BEFORE, CHOICES, CONVERTED
from tests.test_train import ROOT, fresh_env

Losses = dict[str, list[float]]


def on(ranks: int, folder: Path) -> Losses:
    """The losses that so many ranks come to."""
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(ranks)]
    env = {**fresh_env(folder / "extensions"), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "-m", "tests.every_zero", folder], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.so"))  # nothing had to be compiled
    found: Losses = json.loads((folder / f"{ranks}.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two(folder: Path) -> Losses:
    return on(2, folder)


@pytest.fixture(scope="module")
def one(two: Losses, folder: Path) -> Losses:
    """From the checkpoints of two."""
    return on(1, folder)


@pytest.mark.parametrize("choice", CHOICES)
def test_all_learn_the_same(two: Losses, choice: str) -> None:
    assert two[f"{choice} fp32"] == pytest.approx(two["zero0 fp32"], abs=1e-5)
    bf16 = two[f"{choice} bf16"]
    assert bf16[0] > bf16[2] > bf16[4]
    if choice != "zero0":  # whose first step is DeepSpeed's own
        assert bf16 == pytest.approx(two["zero0 fp32"], abs=0.03)


def test_the_norm_of_all_weights_is_that_of_their_shares(two: Losses) -> None:
    found, wanted = two["norm of shares"]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("choice", "precision"), CONVERTED)
def test_on_another_number_of_ranks_all_go_on_alike(two: Losses, one: Losses, choice: str, precision: str) -> None:
    """Moments, counts of steps and weight decay included."""
    name = f"{choice} {precision}"
    assert one[name] == pytest.approx(two[name][BEFORE:], abs=1e-5 if precision == "fp32" else 3e-3)
