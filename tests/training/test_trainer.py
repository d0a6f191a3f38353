"""The loop itself, on one rank in this process, with batches that a test hands it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.cli import compose
from pipeline.data.dataloader import Batch
from pipeline.training import checkpoint, distributed
from pipeline.training.checkpoint import RetentionPolicy
from pipeline.training.engine import build_engine
from pipeline.training.trainer import Trainer, TrainerConfig
from tests.helpers.models import tiny
from tests.helpers.zero_choices import CHOICES

pytestmark = pytest.mark.usefixtures("here")


def batch(number: int, finite: bool = True) -> Batch:
    """Two clips, the same for the same number."""
    random = torch.Generator().manual_seed(number)
    codes = torch.randint(0, 1024, (2, 4, 12), generator=random, dtype=torch.int16)
    half = torch.randn(2, 12, generator=random).half()
    return Batch(codes, torch.tensor([12, 7]), half if finite else half * torch.inf, 0, np.array([number]))


class Run:
    """A trainer on the batches of `told`, which the names of faults stand among."""

    def __init__(
        self, run: Path, zero: str, precision: str, accumulate: int, told: list[int | str], val_every: int = 0
    ) -> None:
        words = [
            f"deepspeed={zero}",
            f"trainer.precision={precision}",
            f"trainer.gradient_accumulation_steps={accumulate}",
        ]
        cfg = compose("train", [*words, "trainer.micro_batch=2", "trainer.async_checkpoint=false"])
        world = distributed.init_distributed(60)
        engine = build_engine(cfg, tiny(), world)
        settings = TrainerConfig(
            steps=len(told) // accumulate, gradient_accumulation_steps=accumulate, lr=0.01,
            schedule={"name": "constant"}, log_every=1, val_every=val_every, save_every=0,
            retention=RetentionPolicy(1, False, 0), async_checkpoint=False, seed=0, ema=0.0,
            max_skipped_steps=2, watchdog_seconds=0.0, peak_flops=0.0,
        )  # fmt: skip
        self.told, self.weight, self.folder = told, engine.module.backbone.h[0].mlp.c_fc.weight, run
        run.mkdir(exist_ok=True)
        valid = [(batch(1000), True)] if val_every else []
        self.trainer = Trainer(
            engine,
            world,
            settings,
            self.batches,
            lambda: iter(valid),
            lambda b: [str(n) for n in b.clip_positions.tolist()],
            run,
        )
        self.rows: list[dict[str, float]] = []

    def batches(self, place: int) -> Iterator[Batch]:
        for number, what in enumerate(self.told):
            hook = None
            if what == "gradient":
                hook = self.weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
            if isinstance(what, str) and what.startswith("SIG"):
                for name in what.split():
                    os.kill(os.getpid(), getattr(signal, name))
                what = number + 1
            yield batch(what) if isinstance(what, int) else batch(100 + number, finite=what != "loss")
            if hook is not None:
                hook.remove()

    def train(self, code: int = 0) -> dict[str, torch.Tensor]:
        """The weights at the end, whole or (ZeRO-3) as this rank holds them."""
        assert self.trainer.train(lambda step, row: self.rows.append({"step": step, **row}) if row else None) == code
        weights = self.trainer.model.named_parameters()
        return {name: (p.ds_tensor if hasattr(p, "ds_tensor") else p).detach().clone() for name, p in weights}

    def named(self) -> list[str]:
        """The clips that were written down."""
        file = self.folder / "not-finite-rank-0.jsonl"
        return [key for line in file.read_text().splitlines() for key in json.loads(line)["clips"]]


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", CHOICES)
def test_a_skipped_step_leaves_no_trace(tmp_path: Path, zero: str, precision: str, fault: str) -> None:
    """The weights are those of a run that never met its clips, moments of the optimizer and all."""
    run = Run(tmp_path / "met", zero, precision, 1, [1, 2, fault, 3])
    met, spared = run.train(), Run(tmp_path / "spared", zero, precision, 1, [1, 2, 3]).train()
    assert all(torch.equal(met[name], spared[name]) for name in spared)
    assert run.named() == ["102"] and [row["train/skipped"] for row in run.rows] == [0, 0, 1, 1]


@pytest.mark.parametrize("zero", CHOICES)
def test_one_micro_batch_takes_its_whole_step_with_it(tmp_path: Path, zero: str) -> None:
    """Of the clips of a skipped step only those whose loss is not finite are named, and no loss of it is counted."""
    run = Run(tmp_path / "met", zero, "fp32", 2, [1, 2, 3, "loss", 4, 5])
    met, spared = run.train(), Run(tmp_path / "spared", zero, "fp32", 2, [1, 2, 4, 5]).train()
    assert all(torch.equal(met[name], spared[name]) for name in spared)
    assert run.named() == ["103"]
    assert run.rows[2]["train/loss"] == pytest.approx(run.rows[0]["train/loss"], abs=0.5)


def test_weights_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "zero1", "fp32", 1, [1, 2])
    with torch.no_grad():
        run.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="non-finite weights at step 1: resume from an earlier checkpoint"):
        run.train()


def test_the_norm_and_what_is_learned_are_the_same_at_every_stage(tmp_path: Path) -> None:
    """In fp32 at ZeRO-0 the optimizer clips by itself, elsewhere DeepSpeed's around it."""
    runs = [Run(tmp_path / zero, zero, "fp32", 1, [1, 2, 3]) for zero in ("zero0", "zero1")]
    for run in runs:
        run.train()
    for name in ("train/grad_norm", "train/loss", "train/parameter_norm"):
        first, second = ([row[name] for row in run.rows] for run in runs)
        assert first == pytest.approx(second, rel=1e-5) and min(first) > 0


@pytest.mark.parametrize("asks", ["SIGUSR1", "SIGTERM", "SIGHUP", "SIGINT"])
def test_who_asks_to_stop_waits_for_no_validation_and_the_next_run_makes_up_for_it(tmp_path: Path, asks: str) -> None:
    told: list[int | str] = [1, 2, 3, 4]
    whole = Run(tmp_path / "whole", "zero0", "fp32", 1, told, val_every=2)
    whole.train()
    stopped = Run(tmp_path / "run", "zero0", "fp32", 1, [1, asks, 3, 4], val_every=2)
    stopped.train(code=75)
    assert [row["step"] for row in stopped.rows if "val/loss" in row] == []
    again = Run(tmp_path / "run", "zero0", "fp32", 1, told[2:], val_every=2)
    again.trainer.config = whole.trainer.config
    again.trainer.resume(checkpoint.list_checkpoints(tmp_path / "run")[-1])
    again.train()
    for name in ("train/loss", "val/loss"):
        both = [(row["step"], row[name]) for row in stopped.rows + again.rows if name in row]
        assert both == [(row["step"], row[name]) for row in whole.rows if name in row] and len(both) >= 2


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run", "zero0", "fp32", 1, [1, "SIGINT SIGINT", 3]).train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not checkpoint.list_checkpoints(
        tmp_path / "run"
    )
