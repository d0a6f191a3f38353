"""The training loop: an endless stream of batches, counted in steps, with exact resume.

One step, on every rank: read the micro-batches; all-reduce how many tokens they hold, and whether any rank should stop;
accumulate the gradients of (summed loss / tokens); update. So the loss of a step is the mean over all tokens of all
ranks and micro-batches, however long their clips are.

Randomness (dropout, dropped prompts) is seeded by (seed, step, micro-batch, rank), so no generator state is saved.

A step with a non-finite loss or gradient is skipped on all ranks: weights and optimizer stay unchanged, and its clips
are logged. The norm of the gradients shows it, so the host reads one number of the GPU per step, after the backward
pass, and never waits between the forward and the backward pass.

A watchdog prints the stacks of a rank that hangs (a dead peer, stuck storage) and ends the job.

Letters: B clips, K codebooks, T frames, P prompt width.
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
from pipeline.training.loss_meter import LossMeter

log = logging.getLogger(__name__)
OnLog = Callable[[int, dict[str, float]], None]
OnCheckpoint = Callable[[Path], None]


class Batch(Protocol):
    """Clips of this rank, and the position of the stream after the batches of all ranks."""

    frames: Tensor
    position: int
    clip_positions: Any

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K, T], frames [B] and prompts [B, P] on a device."""


@dataclass(frozen=True)
class TrainerConfig:
    """The settings of the loop; intervals are in steps."""

    steps: int
    gradient_accumulation_steps: int
    lr: float
    schedule: Any
    log_every: int
    val_every: int
    save_every: int
    retention: checkpoint.RetentionPolicy
    async_checkpoint: bool
    seed: int
    ema: float  # decay of the moving average of the weights; 0: off
    max_skipped_steps: int  # consecutive skipped steps before training fails
    watchdog_seconds: float
    peak_flops: float  # of the device, in the precision of training; 0: unknown
    recorded_settings: Mapping[str, Any] = field(default_factory=dict)  # stored in checkpoints, compared on resume


class Trainer:
    """The loop of one rank around a DeepSpeed engine."""

    def __init__(
        self,
        engine: Any,
        world: World,
        config: TrainerConfig,
        batches_from: Callable[[int], Iterator[Batch]],
        validation_batches: Callable[[], Iterator[tuple[Batch, bool]]],
        clip_keys: Callable[[Batch], list[str]],
        run: Path,
    ) -> None:
        """Create a trainer at step 0.

        Args:
            engine: a DeepSpeed engine around a CodecGPT.
            world: the ranks.
            config: the settings of the loop.
            batches_from: the training batches from a position of the stream on.
            validation_batches: batches, each with whether it counts. Their number is the same on every rank, because at
                ZeRO-3 every forward pass involves all ranks.
            clip_keys: the keys of the clips of a batch.
            run: the run folder.
        """
        self.engine, self.world, self.config, self.run = engine, world, config, run
        self.batches_from, self.validation_batches, self.clip_keys = batches_from, validation_batches, clip_keys
        self.model: CodecGPT = engine.module
        self.ema = Ema(self.model, config.ema) if config.ema and world.is_main else None
        self.step = self.samples_seen = self.frames_seen = self.skipped_steps = 0
        self.meter = LossMeter(self.model.config.codebooks, world.device)
        self._should_stop = False
        self._consecutive_skips = 0
        self._val_loss = (-1, math.nan)  # step, loss
        self._pending: checkpoint.PendingCheckpoint | None = None
        self._on_checkpoint: OnCheckpoint = lambda folder: None

    def resume(self, path: Path) -> None:
        """Load a checkpoint: weights, optimizer, step, position of the stream, loss sums since the last log row."""
        checkpoint.load(self.engine, path, self.world, self.run)
        state = checkpoint.read_metadata(path)
        self.step, self.samples_seen = state["step"], state["place"]
        self.frames_seen, self.skipped_steps = state["frames"], state["skipped"]
        if "val_loss" in state:
            self._val_loss = (self.step, state["val_loss"])
        if self.ema is not None:
            self.ema = Ema(self.model, self.config.ema)
            self.ema.load(path)
        saved_sums = state["meter"] if self.world.is_main else None
        self.meter = LossMeter(self.model.config.codebooks, self.world.device, saved_sums)

    def train(self, on_log: OnLog, on_checkpoint: OnCheckpoint = lambda folder: None) -> int:
        """Train to the last step, or until a stop signal or ^C, and save.

        Args:
            on_log: called with the step and its metrics, the same on every rank.
            on_checkpoint: called with the folder of each complete checkpoint.

        Returns:
            The exit code: 0 at the last step, 75 after a stop request.
        """
        config = self.config
        signals = [*stop_signals.stop_signals(), signal.SIGINT]
        old_handlers = {number: signal.signal(number, self._request_stop) for number in signals}
        stop_signals.begin_training()
        batches, self._on_checkpoint = self.batches_from(self.samples_seen), on_checkpoint
        try:
            if 0 < self.step < config.steps and self._is_validation_step() and self._val_loss[0] != self.step:
                on_log(self.step, self.validate())  # the run was stopped before this validation
            while self.step < config.steps:
                stop = self._train_step(batches)
                done = self.step == config.steps
                if self.step % config.log_every == 0 or done:
                    on_log(self.step, self._training_metrics())
                if done or (self._is_validation_step() and not stop):  # a stop request must not wait for a validation
                    on_log(self.step, self.validate())
                if done or stop or (config.save_every and self.step % config.save_every == 0):
                    self.save()
                if (done or stop) and self._pending:
                    self._commit_checkpoint()
                if stop and not done:
                    log.info("stopped on request at step %d of %d; the same command resumes", self.step, config.steps)
                    return EXIT_REQUEUE
        finally:
            faulthandler.cancel_dump_traceback_later()
            batches.close()  # type: ignore[attr-defined]
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
        return 0

    def _train_step(self, batches: Iterator[Batch]) -> bool:
        """One optimizer step; returns whether any rank has been asked to stop."""
        self._reset_watchdog()
        config, started_at = self.config, time.perf_counter()
        micro_batches = [next(batches) for _ in range(config.gradient_accumulation_steps)]
        self.meter.data_wait += time.perf_counter() - started_at
        tokens, frames, should_stop = self._count_tokens(micro_batches)
        optimizer.set_lr(
            self.engine.optimizer, config.lr * schedules.lr_multiplier(self.step, config.steps, config.schedule)
        )
        losses = []
        for m, batch in enumerate(micro_batches):
            torch.manual_seed(fold_seed(config.seed, self.step, m, self.world.rank))
            # the engine averages over micro-batches and ranks, but the loss is divided by the tokens of all of them
            scale = config.gradient_accumulation_steps * self.world.world_size / tokens
            losses.append(self._forward_backward(batch, scale))
            self.engine.step()
        self.step, self.samples_seen = self.step + 1, micro_batches[-1].position
        self.frames_seen += frames
        if self.engine.optimizer.overflow:
            self._skip_step(micro_batches, [loss_sums for loss_sums, _ in losses])
        else:
            self._consecutive_skips = 0
            for batch, (loss_sums, num_tokens) in zip(micro_batches, losses, strict=True):
                self.meter.add(loss_sums, num_tokens, len(batch.frames))
            if self.ema is not None:
                self.ema.update(self.model)
        return should_stop

    def _count_tokens(self, micro_batches: list[Batch]) -> tuple[float, int, bool]:
        """Tokens and frames of a step over all ranks, and whether any rank has been asked to stop: one all-reduce.

        The same all-reduce says whether all ranks have written the pending checkpoint, which is then committed.
        """
        frames = sum(int(batch.frames.sum()) for batch in micro_batches)
        end_frames = self.model.config.end_of_audio * sum(len(batch.frames) for batch in micro_batches)
        is_writing = self._pending is not None and self._pending.writer.busy
        counts = [(frames + end_frames) * self.model.config.codebooks, frames, self._should_stop, is_writing]
        tokens, all_frames, stopping, writing = self.world.all_reduce_sum(counts)
        if self._pending and not writing:
            self._commit_checkpoint()
        return tokens, int(all_frames), stopping > 0

    def _forward_backward(self, batch: Batch, scale: float) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy [K] and number of tokens [K] of a batch; a GPU may still be computing them."""
        loss_sums, num_tokens = self.engine(*batch.to(self.world.device))  # [K], [K]
        loss = loss_sums.sum()  # []
        # an infinite loss can have finite gradients: make them NaN, so that the step is skipped
        self.engine.backward(loss * torch.where(loss.detach().isfinite(), scale, math.nan))
        return loss_sums.detach(), num_tokens

    def _skip_step(self, micro_batches: list[Batch], losses: list[Tensor]) -> None:
        """Count a step that the optimizer has skipped on all ranks, and log the clips that caused it.

        Raises:
            FloatingPointError: weights are not finite, or too many consecutive steps were skipped.
        """
        if not math.isfinite(self.world.all_reduce_sum([local_param_sq_norm(self.engine, self.world)])[0]):
            raise FloatingPointError(f"non-finite weights at step {self.step}: resume from an earlier checkpoint")
        is_bad = [not bool(loss.sum().isfinite()) for loss in losses]
        # without a bad loss on any rank, gradients have overflowed, and no batch in particular is the cause
        any_bad_loss = self.world.all_reduce_sum([sum(is_bad)])[0] > 0
        for batch, bad in zip(micro_batches, is_bad, strict=True):
            if bad or not any_bad_loss:
                self._log_bad_batch(batch)
        cause = "loss" if any_bad_loss else "gradient"
        log.warning("step %d skipped: non-finite %s; see %s/not-finite-*.jsonl", self.step, cause, self.run)
        self.skipped_steps, self._consecutive_skips = self.skipped_steps + 1, self._consecutive_skips + 1
        if self._consecutive_skips >= self.config.max_skipped_steps:
            raise FloatingPointError(
                f"{self._consecutive_skips} consecutive steps had a non-finite loss or gradient: {self.run}/"
                "not-finite-*.jsonl names their clips; lower optim.lr, or check the dataset with "
                "`python -m pipeline.shards verify`"
            )

    def _log_bad_batch(self, batch: Batch) -> None:
        """Append the keys of a batch to `not-finite-rank-N.jsonl`."""
        row = {"step": self.step, "rank": self.world.rank, "clips": self.clip_keys(batch)}
        with (self.run / f"not-finite-rank-{self.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _is_validation_step(self) -> bool:
        """Whether the model is validated after this step."""
        return bool(self.config.val_every) and self.step % self.config.val_every == 0

    def validate(self) -> dict[str, float]:
        """The loss over every validation clip exactly once; empty without validation clips."""
        self.engine.eval()
        meter = LossMeter(self.model.config.codebooks, self.world.device)
        with torch.no_grad():
            for batch, counts in self.validation_batches():
                self._reset_watchdog()
                loss_sums, num_tokens = self.engine(*batch.to(self.world.device))
                meter.add(loss_sums * counts, num_tokens * counts, len(batch.frames))
        self.engine.train()
        self.meter.restart_timer()  # validation must not count in the speed of training
        metrics = meter.losses(self.world, "val") if self.world.all_reduce_sum([meter.clips])[0] else {}
        if metrics:
            self._val_loss = (self.step, metrics["val/loss"])
        return metrics

    def save(self) -> None:
        """Write a checkpoint; in the background, a later step commits it once all ranks have written their files."""
        self._reset_watchdog()
        if self._pending:
            self._commit_checkpoint()
        state: dict[str, Any] = {"step": self.step, "place": self.samples_seen, "seed": self.config.seed}
        state |= {"settings": dict(self.config.recorded_settings)}
        state |= {"frames": self.frames_seen, "skipped": self.skipped_steps, "meter": self.meter.state(self.world)}
        if self._val_loss[0] == self.step:
            state["val_loss"] = self._val_loss[1]
        background = self.config.async_checkpoint
        self._pending = checkpoint.start_save(self.engine, self.run, self.world, state, self.ema, background)
        if not background:
            self._commit_checkpoint()

    def _commit_checkpoint(self) -> None:
        assert self._pending is not None
        self._on_checkpoint(checkpoint.commit(self.world, self._pending, self.config.retention))
        self._pending = None

    def _reset_watchdog(self) -> None:
        """Restart the watchdog's timer: when it expires, it prints all stacks and ends this rank, and so the job."""
        if self.config.watchdog_seconds:
            faulthandler.dump_traceback_later(self.config.watchdog_seconds, exit=True)

    def _training_metrics(self) -> dict[str, float]:
        """Metrics over the steps since the last row of the log."""
        meter = self.meter
        seconds = time.perf_counter() - meter.started_at
        host_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        local = [meter.clips, float(meter.sums[1].sum()), meter.data_wait / seconds]
        local.append(local_param_sq_norm(self.engine, self.world))
        clips, tokens, data_wait, param_sq_norm = self.world.all_reduce_sum(local)
        metrics = meter.losses(self.world, "train")
        metrics["train/lr"] = self.engine.optimizer.param_groups[0]["lr"]
        metrics["train/grad_norm"] = float(self.engine.get_global_grad_norm())
        metrics["train/parameter_norm"] = math.sqrt(param_sq_norm)
        metrics["train/clips"], metrics["train/frames"] = self.samples_seen, self.frames_seen
        metrics["train/skipped"] = self.skipped_steps
        metrics["speed/clips_per_second"], metrics["speed/codes_per_second"] = clips / seconds, tokens / seconds
        metrics["speed/codes_per_second_per_gpu"] = tokens / seconds / self.world.world_size
        metrics["speed/data_wait"] = data_wait / self.world.world_size
        metrics["memory/host_gib"] = host_gib
        if self.world.device.type == "cuda":
            metrics["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.config.peak_flops:
            config = self.model.config
            flops = clips * model_stats.training_flops(config, tokens / clips / config.codebooks) if clips else 0.0
            metrics["speed/mfu"] = flops / seconds / self.world.world_size / self.config.peak_flops
        meter.restart_timer()
        return metrics

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._should_stop = True
        if number == signal.SIGINT:  # a second ^C interrupts immediately
            signal.signal(number, signal.default_int_handler)


def local_param_sq_norm(engine: Any, world: World) -> float:
    """The part of this rank in the squared norm of all weights."""
    parameters = list(engine.module.parameters())
    if engine.zero_optimization_partition_weights():
        shards = [(p.ds_tensor, p.ds_numel - world.rank * p.ds_tensor.numel()) for p in parameters]
        # the end of a shard may be padding, which is uninitialized memory
        return sum(float(shard[: max(0, size)].float().square().sum()) for shard, size in shards)
    if not world.is_main:
        return 0.0
    return float(torch.stack([p.detach().float().norm() for p in parameters]).square().sum())
