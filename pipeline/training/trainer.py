"""The training loop: an endless stream, counted in steps; exact to resume, and stopped only between steps.

A step, on every rank: take `gradient_accumulation_steps` batches, agree with the others on how many cells they hold
(and whether somebody wants to stop), add up the gradients of nats / cells, update. So the loss of a step is the mean
over all active cells of all ranks and micro-batches, however long their clips are.

Randomness (dropout, dropped prompts) is seeded by (seed, step, micro-batch, rank): nothing of it needs saving.

A step with a loss or a gradient that is not finite leaves no trace in weights and optimizer, on any rank, and its clips
are written down. That shows in the gradients' norm, so a step looks at one number of its GPU, and that late: it never
waits between its forward and backward passes.
A rank that hangs (a dead peer, stuck storage) prints the stacks of its threads and ends the job.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.seeds import fold_seed
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import checkpoint, optimizer, schedules, stop_signals
from pipeline.training.distributed import World
from pipeline.training.ema import Ema

log = logging.getLogger(__name__)


class Batch(Protocol):
    """What a stream yields: clips for this rank, and the place of the stream after them on all ranks."""

    frames: Tensor
    position: int
    clip_positions: Any

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K, T], frames [B], prompts [B, P] on a device."""


@dataclass(frozen=True)
class TrainerConfig:
    """The numbers of `conf/train.yaml` that the loop needs; in steps where not said otherwise."""

    steps: int
    gradient_accumulation_steps: int
    lr: float
    schedule: Any
    log_every: int
    val_every: int
    save_every: int
    keep: checkpoint.RetentionPolicy
    async_checkpoint: bool  # whether checkpoints are written in the background, while training continues
    seed: int
    ema: float  # decay of the running mean of the weights; 0: none
    max_skipped_steps: int  # skipped steps in a row before giving up
    watchdog_seconds: float  # seconds that a step may take before the watchdog ends the job
    peak_flops: float  # of the device, in the precision of training; 0: unknown
    recorded: Mapping[str, Any] = field(default_factory=dict)  # settings that a checkpoint keeps, to compare on resume


class LossMeter:
    """Nats and cells a codebook since the last row of the log, and how long they took."""

    def __init__(self, codebooks: int, device: torch.device, saved: list[float] | None = None) -> None:
        """saved: what `state` gave; on the first rank alone, for it holds the sums over all."""
        self.sums = torch.zeros(2, codebooks, dtype=torch.float64, device=device)
        if saved:
            self.sums += torch.tensor(saved, dtype=torch.float64, device=device).view(2, codebooks)
        self.start()

    def start(self) -> None:
        """Begin to measure the time of a row; what was counted of losses stays."""
        self.since, self.clips, self.waited = time.perf_counter(), 0, 0.0

    def add(self, nats: Tensor, cells: Tensor, clips: int) -> None:
        """Count a batch: nats [K], cells [K]."""
        self.sums += torch.stack([nats.detach(), cells])
        self.clips += clips

    def state(self, world: World) -> list[float]:
        """The sums over all ranks, which from now on the first rank holds alone."""
        total = world.all_reduce_sum(self.sums.flatten().tolist())
        self.sums.copy_(torch.tensor(total if world.is_main else [0.0] * len(total)).view_as(self.sums))
        return total

    def losses(self, world: World, split: str) -> dict[str, float]:
        """Mean cross-entropy in nats over all ranks, in all and a codebook; the meter is empty again."""
        total = torch.tensor(world.all_reduce_sum(self.sums.flatten().tolist()), dtype=torch.float64).view_as(
            self.sums.cpu()
        )
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
        settings: TrainerConfig,
        stream: Callable[[int], Iterator[Batch]],
        validation: Callable[[], Iterator[tuple[Batch, bool]]],
        describe: Callable[[Batch], list[str]],
        run: Path,
    ) -> None:
        """stream(place): training batches from a place on; describe(batch): the keys of its clips.

        validation(): the same number of batches on every rank, each with whether it counts (ZeRO-3 needs all ranks in
        every forward pass, so a rank that has run out repeats a batch that does not count).
        """
        self.engine, self.world, self.settings, self.run = engine, world, settings, run
        self.stream, self.validation, self.describe = stream, validation, describe
        self.model: CodecGPT = engine.module
        self.ema = Ema(self.model, settings.ema) if settings.ema and world.is_main else None
        self.step = self.place = self.frames = self.skipped = 0
        self.meter = LossMeter(self.model.config.codebooks, world.device)
        self._stop, self._in_a_row, self._val_loss = False, 0, (-1, math.nan)
        self._saving: checkpoint.PendingCheckpoint | None = None

    def resume(self, found: Path) -> None:
        """Go on from a checkpoint: weights, optimizer, step, place and the loss since the last row of the log."""
        checkpoint.load(self.engine, found, self.world, self.run)
        state = checkpoint.read_metadata(found)
        self.step, self.place = state["step"], state["place"]
        self.frames, self.skipped = state["frames"], state["skipped"]
        if "val_loss" in state:
            self._val_loss = (self.step, state["val_loss"])
        if self.ema is not None:
            self.ema = Ema(self.model, self.settings.ema)
            self.ema.load(found)
        self.meter = LossMeter(
            self.model.config.codebooks, self.world.device, state["meter"] if self.world.is_main else None
        )

    def train(
        self, track: Callable[[int, dict[str, float]], None], kept: Callable[[Path], None] = lambda folder: None
    ) -> int:
        """Train to the last step, and return 0; or, stopped by a stop signal or ^C, save and return 75.

        track(step, metrics) is called on every rank with the same numbers; kept(folder) with each complete checkpoint.
        """
        s = self.settings
        signals = [*stop_signals.stop_signals(), signal.SIGINT]
        before = {number: signal.signal(number, self._ask_to_stop) for number in signals}
        stop_signals.begin_training()
        batches, self._kept = self.stream(self.place), kept
        try:
            if 0 < self.step < s.steps and self._validates() and self._val_loss[0] != self.step:
                track(self.step, self.validate())  # a request to stop came before it
            while self.step < s.steps:
                stop = self._update(batches)
                done = self.step == s.steps
                if self.step % s.log_every == 0 or done:
                    track(self.step, self._row())
                if done or (self._validates() and not stop):  # who asks to stop may not wait for it
                    track(self.step, self.validate())
                if done or stop or (s.save_every and self.step % s.save_every == 0):
                    self.save()
                if (done or stop) and self._saving:
                    self._finish_saving()
                if stop and not done:
                    log.info("stopped on request at step %d of %d; the same command goes on", self.step, s.steps)
                    return EXIT_REQUEUE
        finally:
            faulthandler.cancel_dump_traceback_later()
            batches.close()  # type: ignore[attr-defined]
            for sig, handler in before.items():
                signal.signal(sig, handler)
        return 0

    def _validates(self) -> bool:
        """Whether this step is one after which the model is validated."""
        return bool(self.settings.val_every) and self.step % self.settings.val_every == 0

    def validate(self) -> dict[str, float]:
        """The loss over every validation clip exactly once; empty where there are none."""
        self.engine.eval()
        meter = LossMeter(self.model.config.codebooks, self.world.device)
        with torch.no_grad():
            for batch, counts in self.validation():
                self._reset_watchdog()
                nats, cells = self.engine(*batch.to(self.world.device))
                meter.add(nats * counts, cells * counts, len(batch.frames))
        self.engine.train()
        self.meter.start()  # the time went to validation: no row of training counts it
        row = meter.losses(self.world, "val") if self.world.all_reduce_sum([meter.clips])[0] else {}
        if row:
            self._val_loss = (self.step, row["val/loss"])
        return row

    def save(self) -> None:
        """Write a checkpoint from which this very state goes on; aside, if so set, until a later step finds it done."""
        self._reset_watchdog()
        if self._saving:
            self._finish_saving()
        state: dict[str, Any] = {"step": self.step, "place": self.place, "seed": self.settings.seed}
        state |= {"settings": dict(self.settings.recorded)}
        state |= {"frames": self.frames, "skipped": self.skipped, "meter": self.meter.state(self.world)}
        if self._val_loss[0] == self.step:
            state["val_loss"] = self._val_loss[1]
        background = self.settings.async_checkpoint
        self._saving = checkpoint.start_save(self.engine, self.run, self.world, state, self.ema, background)
        if not background:
            self._finish_saving()

    def _finish_saving(self) -> None:
        assert self._saving is not None
        self._kept(checkpoint.commit(self.world, self._saving, self.settings.keep))
        self._saving = None

    def _update(self, batches: Iterator[Batch]) -> bool:
        """One optimizer step; whether any rank has been asked to stop."""
        self._reset_watchdog()
        s, began = self.settings, time.perf_counter()
        micro = [next(batches) for _ in range(s.gradient_accumulation_steps)]
        self.meter.waited += time.perf_counter() - began
        frames = sum(int(b.frames.sum()) for b in micro)
        ends = self.model.config.end_of_audio * sum(len(b.frames) for b in micro)
        writing = self._saving is not None and self._saving.writer.busy
        mine = [(frames + ends) * self.model.config.codebooks, frames, self._stop, writing]
        cells, heard, asked, still = self.world.all_reduce_sum(mine)
        if self._saving and not still:
            self._finish_saving()
        optimizer.set_lr(self.engine.optimizer, s.lr * schedules.lr_multiplier(self.step, s.steps, s.schedule))
        taken = []
        for m, batch in enumerate(micro):
            torch.manual_seed(fold_seed(s.seed, self.step, m, self.world.rank))
            # the engine takes the mean over accumulation and ranks; the division is over all their cells
            taken.append(self._forward_backward(batch, s.gradient_accumulation_steps * self.world.world_size / cells))
            self.engine.step()
        self.step, self.place, self.frames = self.step + 1, micro[-1].position, self.frames + int(heard)
        if self.engine.optimizer.overflow:
            self._skip(micro, [nats for nats, _ in taken])
        else:
            self._in_a_row = 0
            for batch, (nats, counted) in zip(micro, taken, strict=True):
                self.meter.add(nats, counted, len(batch.frames))
            if self.ema is not None:
                self.ema.update(self.model)
        return asked > 0

    def _forward_backward(self, batch: Batch, scale: float) -> tuple[Tensor, Tensor]:
        """Forward and backward: nats [K] and cells [K] of a batch, still on their way on a GPU."""
        nats, cells = self.engine(*batch.to(self.world.device))
        loss = nats.sum()
        # a loss that is infinite can have finite gradients: let none of them be
        self.engine.backward(loss * torch.where(loss.detach().isfinite(), scale, math.nan))
        return nats.detach(), cells

    def _skip(self, micro: list[Batch], nats: list[Tensor]) -> None:
        """Count a step that the optimizer has not taken, on all ranks alike, and write down what did it.

        Raises FloatingPointError where weights are not finite, and after too many such steps in a row.
        """
        if not math.isfinite(self.world.all_reduce_sum([local_param_sq_norm(self.engine, self.world)])[0]):
            raise FloatingPointError(f"the weights are no longer finite at step {self.step}: resume from before it")
        odd = [not bool(each.sum().isfinite()) for each in nats]
        by_loss = self.world.all_reduce_sum([sum(odd)])[0] > 0  # else gradients overflowed, of no batch in particular
        for batch, is_odd in zip(micro, odd, strict=True):
            if is_odd or not by_loss:
                self._log_bad_batch(batch)
        what = "loss" if by_loss else "gradient"
        log.warning("step %d skipped: the %s is not finite; see %s/not-finite-*.jsonl", self.step, what, self.run)
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._in_a_row >= self.settings.max_skipped_steps:
            raise FloatingPointError(
                f"{self._in_a_row} steps in a row had a loss or a gradient that is not finite: {self.run}/"
                "not-finite-*.jsonl names their clips; lower optim.lr, or look at the cache with "
                "`python -m pipeline.shards verify`"
            )

    def _log_bad_batch(self, batch: Batch) -> None:
        """Leave the keys of a batch for inspection."""
        row = {"step": self.step, "rank": self.world.rank, "clips": self.describe(batch)}
        with (self.run / f"not-finite-rank-{self.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _reset_watchdog(self) -> None:
        """Give the watchdog new patience: past it, all stacks are printed and this rank ends, and so the job."""
        if self.settings.watchdog_seconds:
            faulthandler.dump_traceback_later(self.settings.watchdog_seconds, exit=True)

    def _row(self) -> dict[str, float]:
        """A row of the log over the steps since the last one."""
        seconds = time.perf_counter() - self.meter.since
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        mine = [self.meter.clips, float(self.meter.sums[1].sum()), self.meter.waited / seconds]
        clips, codes, waited, squared = self.world.all_reduce_sum([*mine, local_param_sq_norm(self.engine, self.world)])
        row = self.meter.losses(self.world, "train")
        row["train/lr"] = self.engine.optimizer.param_groups[0]["lr"]
        row["train/grad_norm"] = float(self.engine.get_global_grad_norm())
        row["train/parameter_norm"] = math.sqrt(squared)
        row["train/clips"], row["train/frames"], row["train/skipped"] = self.place, self.frames, self.skipped
        row["speed/clips_per_second"], row["speed/codes_per_second"] = clips / seconds, codes / seconds
        row["speed/codes_per_second_per_gpu"] = codes / seconds / self.world.world_size
        row["speed/data_wait"] = waited / self.world.world_size
        row["memory/host_gib"] = host
        if self.world.device.type == "cuda":
            row["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.settings.peak_flops:
            config = self.model.config
            flops = clips * model_stats.training_flops(config, codes / clips / config.codebooks) if clips else 0.0
            row["speed/mfu"] = flops / seconds / self.world.world_size / self.settings.peak_flops
        self.meter.start()
        return row

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        if number == signal.SIGINT:  # a second ^C is for those who cannot wait
            signal.signal(number, signal.default_int_handler)


def local_param_sq_norm(engine: Any, world: World) -> float:
    """The part of the squared norm of all weights that this rank holds."""
    weights = list(engine.module.parameters())
    if engine.zero_optimization_partition_weights():
        shares = [(p.ds_tensor, p.ds_numel - world.rank * p.ds_tensor.numel()) for p in weights]
        # behind a weight's last number a share holds whatever was in its memory
        return sum(float(share[: max(0, left)].float().square().sum()) for share, left in shares)
    if not world.is_main:
        return 0.0
    return float(torch.stack([p.detach().float().norm() for p in weights]).square().sum())
