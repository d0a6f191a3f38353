"""The training loop on one rank in this process, with batches that the test provides."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.cli import load_settings
from pipeline.data.dataloader import Batch
from pipeline.training import checkpoint, distributed
from pipeline.training.context import RunContext
from pipeline.training.engine import build_engine
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Observer, Trainer
from tests.helpers.models import tiny
from tests.helpers.zero_choices import CHOICES

pytestmark = pytest.mark.usefixtures("here")
Event = (
    int | str
)  # the number of a batch; "loss", "gradient": a batch with this fault; "SIGTERM": a batch with a signal


def batch(number: int, finite: bool = True) -> Batch:
    """Two clips, the same for the same number."""
    random = torch.Generator().manual_seed(number)
    codes = torch.randint(0, 1024, (2, 4, 12), generator=random, dtype=torch.int16)
    prompts = torch.randn(2, 12, generator=random).half()
    return Batch(codes, torch.tensor([12, 7]), prompts if finite else prompts * torch.inf, 0, np.array([number]))


class Run(Observer):
    """A trainer whose batches are given by events; it collects the rows of the log."""

    def __init__(
        self, run: Path, zero: str, precision: str, micro_batches: int, events: list[Event], val_every: int = 0
    ) -> None:
        overrides = [
            f"deepspeed={zero}", f"trainer.precision={precision}", "optim.lr=0.01", "optim.schedule.warmup=0",
            f"trainer.gradient_accumulation_steps={micro_batches}", f"trainer.steps={len(events) // micro_batches}",
            "trainer.micro_batch=2", "trainer.async_checkpoint=false", "trainer.log_every=1", "trainer.save_every=0",
            f"trainer.val_every={val_every}", "trainer.keep=1", "trainer.keep_best=false",
            "trainer.max_skipped_steps=2",
        ]  # fmt: skip
        settings = load_settings(TrainSettings, overrides)
        context = RunContext(settings, run, distributed.init_distributed(60))
        engine = build_engine(context, tiny())
        self.events, self.weight, self.folder = events, engine.module.backbone.h[0].mlp.c_fc.weight, run
        run.mkdir(exist_ok=True)
        self.trainer = Trainer(context, engine, self, {})
        self.rows: list[dict[str, float]] = []

    def validation(self) -> Iterator[tuple[Batch, bool]]:
        yield from [(batch(1000), True)] if self.trainer.settings.val_every else []

    def clip_keys(self, batch: Batch) -> list[str]:
        return [str(number) for number in batch.clip_positions.tolist()]

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        if metrics:
            self.rows.append({"step": step, **metrics})

    def training(self, position: int) -> Iterator[Batch]:
        for number, event in enumerate(self.events):
            hook = None
            if event == "gradient":
                hook = self.weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
            if isinstance(event, str) and event.startswith("SIG"):
                for name in event.split():
                    os.kill(os.getpid(), getattr(signal, name))
                event = number + 1
            yield batch(event) if isinstance(event, int) else batch(100 + number, finite=event != "loss")
            if hook is not None:
                hook.remove()

    def train(self, exit_code: int = 0) -> dict[str, torch.Tensor]:
        """Train, and return the weights: complete, or at ZeRO-3 the shards of this rank."""
        assert self.trainer.train(self) == exit_code
        weights = self.trainer.model.named_parameters()
        return {name: (p.ds_tensor if hasattr(p, "ds_tensor") else p).detach().clone() for name, p in weights}

    def bad_clips(self) -> list[str]:
        """The keys of the clips that were logged as not finite."""
        file = self.folder / "not-finite-rank-0.jsonl"
        return [key for line in file.read_text().splitlines() for key in json.loads(line)["clips"]]


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", CHOICES)
def test_skipped_step_changes_nothing(tmp_path: Path, zero: str, precision: str, fault: str) -> None:
    """The weights equal those of a run without the bad clips, so the moments of the optimizer do too."""
    run = Run(tmp_path / "bad", zero, precision, 1, [1, 2, fault, 3])
    weights, expected = run.train(), Run(tmp_path / "good", zero, precision, 1, [1, 2, 3]).train()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert run.bad_clips() == ["102"] and [row["train/skipped"] for row in run.rows] == [0, 0, 1, 1]


@pytest.mark.parametrize("zero", CHOICES)
def test_bad_micro_batch_skips_its_whole_step(tmp_path: Path, zero: str) -> None:
    """Only the clips whose loss is not finite are logged, and no loss of the step is counted."""
    run = Run(tmp_path / "bad", zero, "fp32", 2, [1, 2, 3, "loss", 4, 5])
    weights, expected = run.train(), Run(tmp_path / "good", zero, "fp32", 2, [1, 2, 4, 5]).train()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert run.bad_clips() == ["103"]
    assert run.rows[2]["train/loss"] == pytest.approx(run.rows[0]["train/loss"], abs=0.5)


def test_non_finite_weights_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "zero1", "fp32", 1, [1, 2])
    with torch.no_grad():
        run.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="non-finite weights at step 1: resume from an earlier checkpoint"):
        run.train()


def test_clipping_is_the_same_with_and_without_zero(tmp_path: Path) -> None:
    """In fp32 at ZeRO-0 our optimizer clips, at other stages DeepSpeed's wrapper does."""
    runs = [Run(tmp_path / zero, zero, "fp32", 1, [1, 2, 3]) for zero in ("zero0", "zero1")]
    for run in runs:
        run.train()
    for name in ("train/grad_norm", "train/loss", "train/parameter_norm"):
        first, second = ([row[name] for row in run.rows] for run in runs)
        assert first == pytest.approx(second, rel=1e-5) and min(first) > 0


@pytest.mark.parametrize("signal_name", ["SIGUSR1", "SIGTERM", "SIGHUP", "SIGINT"])
def test_stop_skips_a_validation_that_resume_runs(tmp_path: Path, signal_name: str) -> None:
    """A stop request does not wait for a validation; the resumed run makes up for it, with the same losses."""
    events: list[Event] = [1, 2, 3, 4]
    unbroken = Run(tmp_path / "unbroken", "zero0", "fp32", 1, events, val_every=2)
    unbroken.train()
    stopped = Run(tmp_path / "run", "zero0", "fp32", 1, [1, signal_name, 3, 4], val_every=2)
    stopped.train(exit_code=75)
    assert [row["step"] for row in stopped.rows if "val/loss" in row] == []
    resumed = Run(tmp_path / "run", "zero0", "fp32", 1, events, val_every=2)
    resumed.events = events[2:]
    (newest,) = checkpoint.list_checkpoints(tmp_path / "run")
    resumed.trainer.resume(checkpoint.Checkpoint.read(newest))
    resumed.train()
    for name in ("train/loss", "val/loss"):
        both = [(row["step"], row[name]) for row in stopped.rows + resumed.rows if name in row]
        assert both == [(row["step"], row[name]) for row in unbroken.rows if name in row] and len(both) >= 2


def test_second_interrupt_ends_the_run_immediately(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run", "zero0", "fp32", 1, [1, "SIGINT SIGINT", 3]).train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not checkpoint.list_checkpoints(tmp_path / "run")
