"""The training loop: an endless stream, counted in steps; exact to resume, and stopped only between steps.

A step, on every rank: take `accumulate` batches, agree with the others on how many cells they hold (and whether
somebody wants to stop), add up the gradients of nats / cells, update. So the loss of a step is the mean over all
active cells of all ranks and micro-batches, however long their clips are.

Randomness (dropout, dropped prompts) is seeded by (seed, step, micro-batch, rank): nothing of it needs saving.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.lm import checkpoint, optim
from pipeline.lm.distributed import World
from pipeline.lm.model import CodecGPT

log = logging.getLogger(__name__)
STOPPED = 75


class Batch(Protocol):
    """What a stream yields: clips for this rank, and the place of the stream after them on all ranks."""

    frames: Tensor
    place: int

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K, T], frames [B], prompts [B, P] on a device."""


@dataclass(frozen=True)
class Settings:
    """The numbers of `conf/train.yaml` that the loop needs; in steps where not said otherwise."""

    steps: int
    accumulate: int
    clip: float
    lr: float
    schedule: Any
    log_every: int
    val_every: int
    save_every: int
    keep: int
    seed: int


class Meter:
    """Nats and cells a codebook since the last row of the log, and how long they took."""

    def __init__(self, codebooks: int, device: torch.device, saved: list[float] | None = None) -> None:
        """saved: what `state` gave; on the first rank alone, for it holds the sums over all."""
        self.sums = torch.zeros(2, codebooks, dtype=torch.float64, device=device)
        if saved:
            self.sums += torch.tensor(saved, dtype=torch.float64, device=device).view(2, codebooks)
        self.since, self.clips = time.perf_counter(), 0

    def add(self, nats: Tensor, cells: Tensor, clips: int) -> None:
        """Count a batch: nats [K], cells [K]."""
        self.sums += torch.stack([nats.detach(), cells])
        self.clips += clips

    def state(self, world: World) -> list[float]:
        """The sums over all ranks, which from now on the first rank holds alone."""
        total = world.total(self.sums.flatten().tolist())
        self.sums.copy_(torch.tensor(total if world.first else [0.0] * len(total)).view_as(self.sums))
        return total

    def losses(self, world: World, split: str) -> dict[str, float]:
        """Mean cross-entropy in nats over all ranks, in all and a codebook; the meter is empty again."""
        total = torch.tensor(world.total(self.sums.flatten().tolist()), dtype=torch.float64).view_as(self.sums.cpu())
        self.sums.zero_()
        nats, cells = total
        rows = {f"{split}/loss": float(nats.sum() / cells.sum())}
        rows.update(
            {f"{split}/loss/codebook_{k + 1}": float(n / c) for k, (n, c) in enumerate(zip(*total, strict=True))}
        )
        return rows


class Trainer:
    """One rank's loop around a DeepSpeed engine."""

    def __init__(
        self,
        engine: Any,
        world: World,
        settings: Settings,
        stream: Callable[[int], Iterator[Batch]],
        validation: Callable[[], Iterator[tuple[Batch, bool]]],
        run: Path,
    ) -> None:
        """stream(place): training batches from a place on.

        validation(): the same number of batches on every rank, each with whether it counts (ZeRO-3 needs all ranks in
        every forward pass, so a rank that has run out repeats a batch that does not count).
        """
        self.engine, self.world, self.settings, self.run = engine, world, settings, run
        self.stream, self.validation = stream, validation
        self.model: CodecGPT = engine.module
        self.step = self.place = 0
        self.meter = Meter(self.model.config.codebooks, world.device)
        self._stop = False

    def resume(self, found: Path) -> None:
        """Go on from a checkpoint: weights, optimizer, step, place and the loss since the last row of the log."""
        checkpoint.load(self.engine, found, self.world)
        state = checkpoint.state_of(found)
        self.step, self.place = state["step"], state["place"]
        self.meter = Meter(self.model.config.codebooks, self.world.device, state["meter"] if self.world.first else None)

    def train(self, track: Callable[[int, dict[str, float]], None]) -> int:
        """Train to the last step, and return 0; or, stopped by USR1 or TERM, save and return 75.

        track(step, metrics) is called on every rank with the same numbers.
        """
        s, saved_at = self.settings, self.step
        before = {sig: signal.signal(sig, self._ask_to_stop) for sig in (signal.SIGUSR1, signal.SIGTERM)}
        batches = self.stream(self.place)
        try:
            while self.step < s.steps:
                stop = self._update(batches)
                done = self.step == s.steps
                if self.step % s.log_every == 0 or done:
                    track(self.step, self._row())
                if done or (s.val_every and self.step % s.val_every == 0):
                    track(self.step, self.validate())
                if done or stop or (s.save_every and self.step % s.save_every == 0):
                    self.save()
                    saved_at = self.step
                if stop and not done:
                    log.info("stopped on request at step %d of %d; the same command goes on", self.step, s.steps)
                    return STOPPED
        finally:
            batches.close()  # type: ignore[attr-defined]
            for sig, handler in before.items():
                signal.signal(sig, handler)
        assert saved_at == self.step
        return 0

    def validate(self) -> dict[str, float]:
        """The loss over every validation clip exactly once; empty where there are none."""
        self.engine.eval()
        meter = Meter(self.model.config.codebooks, self.world.device)
        with torch.no_grad():
            for batch, counts in self.validation():
                nats, cells = self.engine(*batch.to(self.world.device))
                meter.add(nats * counts, cells * counts, len(batch.frames))
        self.engine.train()
        self.meter.since = time.perf_counter()  # the time went to validation: no row of training counts it
        self.meter.clips = 0
        return meter.losses(self.world, "val") if self.world.total([meter.clips])[0] else {}

    def save(self) -> None:
        """Write a checkpoint from which this very state goes on."""
        state = {"step": self.step, "place": self.place, "seed": self.settings.seed}
        state["meter"] = self.meter.state(self.world)
        checkpoint.save(self.engine, self.run, self.world, state, self.settings.keep)

    def _update(self, batches: Iterator[Batch]) -> bool:
        """One optimizer step; whether any rank has been asked to stop."""
        s, model = self.settings, self.model
        micro = [next(batches) for _ in range(s.accumulate)]
        ends = model.config.end_of_audio
        cells = sum(int(b.frames.sum()) + ends * len(b.frames) for b in micro) * model.config.codebooks
        total, asked = self.world.total([cells, self._stop])
        optim.set_rate(self.engine.optimizer, s.lr * optim.rate(self.step, s.steps, s.schedule))
        for m, batch in enumerate(micro):
            torch.manual_seed(_fold(s.seed, self.step, m, self.world.rank))
            nats, counted = self.engine(*batch.to(self.world.device))
            # the engine takes the mean over accumulation and ranks; the division is over all their cells
            self.engine.backward(nats.sum() * (s.accumulate * self.world.ranks / total))
            self.engine.step()
            self.meter.add(nats, counted, len(batch.frames))
        self.step, self.place = self.step + 1, micro[-1].place
        return asked > 0

    def _row(self) -> dict[str, float]:
        """A row of the log over the steps since the last one."""
        clips, seconds = self.world.total([self.meter.clips])[0], time.perf_counter() - self.meter.since
        cells = float(self.meter.sums[1].sum())
        codes = self.world.total([cells])[0]
        row = self.meter.losses(self.world, "train")
        norm = self.engine.get_global_grad_norm()
        row["train/lr"] = self.engine.optimizer.param_groups[0]["lr"]
        row["train/grad_norm"] = float(norm) if norm is not None else math.nan
        row["train/clips"] = self.place
        row["speed/clips_per_second"], row["speed/codes_per_second"] = clips / seconds, codes / seconds
        self.meter.since, self.meter.clips = time.perf_counter(), 0
        return row

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True


def _fold(*parts: int) -> int:
    """One seed from several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed
