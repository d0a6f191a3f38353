"""Every choice of conf/deepspeed trains, offload included, and each learns the same from the same clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.every_zero import CHOICES
from tests.test_train import ROOT, fresh_env


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    out = tmp_path_factory.mktemp("zero")
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    env = {**fresh_env(out / "extensions"), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "-m", "tests.every_zero", out / "losses.json"], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.so"))  # nothing had to be compiled
    found: dict[str, list[float]] = json.loads((out / "losses.json").read_text())
    return found


@pytest.mark.parametrize("choice", CHOICES)
def test_all_learn_the_same(losses: dict[str, list[float]], choice: str) -> None:
    assert losses[f"{choice} fp32"] == pytest.approx(losses["zero0 fp32"], abs=1e-6)
    bf16 = losses[f"{choice} bf16"]
    assert bf16[0] > bf16[1] > bf16[2]
    if choice != "zero0":  # whose first step is DeepSpeed's own
        assert bf16 == pytest.approx(losses["zero0 fp32"], abs=0.01)
