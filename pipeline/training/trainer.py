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
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.machine import peak_memory
from pipeline.common.seeds import fold_seed
from pipeline.data.dataloader import Batch
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import checkpoint, stop_signals
from pipeline.training.context import RunContext
from pipeline.training.distributed import World
from pipeline.training.ema import Ema
from pipeline.training.engine import peak_flops
from pipeline.training.loss_meter import LossMeter

log = logging.getLogger(__name__)


class BatchSource(Protocol):
    """The batches of this rank."""

    def training(self, position: int) -> Iterator[Batch]:
        """Endless training batches from a position of the stream on."""

    def validation(self) -> Iterator[tuple[Batch, bool]]:
        """Batches, each with whether it counts. Their number is the same on every rank.

        At ZeRO-3 every forward pass involves all ranks.
        """

    def clip_keys(self, batch: Batch) -> list[str]:
        """The keys of the clips of a training batch."""


class Observer:
    """What is called while training proceeds, the same on every rank. This one does nothing."""

    def on_step(self, step: int) -> None:
        """Called after each step."""

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Called with the metrics of a step that is logged or validated."""

    def on_checkpoint(self, folder: Path) -> None:
        """Called with the folder of each complete checkpoint."""


class Trainer:
    """The loop of one rank around a DeepSpeed engine."""

    def __init__(
        self, context: RunContext, engine: Any, batches: BatchSource, recorded_settings: Mapping[str, Any]
    ) -> None:
        """Create a trainer at step 0.

        Args:
            context: the run.
            engine: a DeepSpeed engine around a CodecGPT.
            batches: what is trained and validated on.
            recorded_settings: stored in checkpoints, and compared on resume.
        """
        self.context, self.engine, self.batches = context, engine, batches
        self.world, self.run, self.settings = context.world, context.run_dir, context.settings.trainer
        self.recorded_settings = recorded_settings
        self.model: CodecGPT = engine.module
        self.ema = Ema(self.model, self.settings.ema) if self.settings.ema and self.world.is_main else None
        self.step = self.samples_seen = self.frames_seen = self.skipped_steps = 0
        self.meter = LossMeter(self.model.config.codebooks, self.world.device)
        self._should_stop = False
        self._consecutive_skips = 0
        self._val_loss = (-1, math.nan)  # step, loss
        self._pending: checkpoint.PendingCheckpoint | None = None
        self._observer = Observer()

    def resume(self, source: checkpoint.Checkpoint) -> None:
        """Load a checkpoint: weights, optimizer, step, position of the stream, loss sums since the last log row."""
        checkpoint.load(self.engine, source, self.world, self.run)
        state = source.metadata
        self.step, self.samples_seen = state["step"], state["place"]
        self.frames_seen, self.skipped_steps = state["frames"], state["skipped"]
        if "val_loss" in state:
            self._val_loss = (self.step, state["val_loss"])
        if self.ema is not None:
            self.ema = Ema(self.model, self.settings.ema)
            self.ema.load(source.path)
        saved_sums = state["meter"] if self.world.is_main else None
        self.meter = LossMeter(self.model.config.codebooks, self.world.device, saved_sums)

    def train(self, observer: Observer) -> int:
        """Train to the last step, or until a stop signal or ^C, and save.

        Returns:
            The exit code: 0 at the last step, 75 after a stop request.
        """
        settings, self._observer = self.settings, observer
        signals = [*stop_signals.stop_signals(), signal.SIGINT]
        old_handlers = {number: signal.signal(number, self._request_stop) for number in signals}
        stop_signals.begin_training()
        batches = self.batches.training(self.samples_seen)
        try:
            if 0 < self.step < settings.steps and self._is_validation_step() and self._val_loss[0] != self.step:
                observer.on_log(self.step, self.validate())  # the run was stopped before this validation
            while self.step < settings.steps:
                stop = self._train_step(batches)
                done = self.step == settings.steps
                observer.on_step(self.step)
                if self.step % settings.log_every == 0 or done:
                    observer.on_log(self.step, self._training_metrics())
                if done or (self._is_validation_step() and not stop):  # a stop request must not wait for a validation
                    observer.on_log(self.step, self.validate())
                if done or stop or (settings.save_every and self.step % settings.save_every == 0):
                    self.save()
                if (done or stop) and self._pending:
                    self._commit_checkpoint()
                if stop and not done:
                    log.info("stopped on request at step %d of %d; the same command resumes", self.step, settings.steps)
                    return EXIT_REQUEUE
        finally:
            faulthandler.cancel_dump_traceback_later()
            batches.close()  # type: ignore[attr-defined]
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
        return 0

    def time_steps(self, count: int) -> list[float]:
        """Train for some steps without saving, and return the seconds of each."""
        batches, times = self.batches.training(0), []
        try:
            for _ in range(count):
                started_at = time.perf_counter()
                self._train_step(batches)
                times.append(time.perf_counter() - started_at)
        finally:
            faulthandler.cancel_dump_traceback_later()
            batches.close()  # type: ignore[attr-defined]
        return times

    def _train_step(self, batches: Iterator[Batch]) -> bool:
        """One optimizer step; returns whether any rank has been asked to stop."""
        self._reset_watchdog()
        accumulation, started_at = self.settings.gradient_accumulation_steps, time.perf_counter()
        micro_batches = [next(batches) for _ in range(accumulation)]
        self.meter.data_wait += time.perf_counter() - started_at
        tokens, frames, should_stop = self._count_tokens(micro_batches)
        optim = self.context.settings.optim
        lr = optim.lr * optim.schedule.multiplier(self.step, self.settings.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for m, batch in enumerate(micro_batches):
            torch.manual_seed(fold_seed(self.context.settings.seed, self.step, m, self.world.rank))
            # the engine averages over micro-batches and ranks, but the loss is divided by the tokens of all of them
            scale = accumulation * self.world.world_size / tokens
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
        loss_sums, num_tokens = self._losses(batch)  # [K], [K]
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
        if self._consecutive_skips >= self.settings.max_skipped_steps:
            raise FloatingPointError(
                f"{self._consecutive_skips} consecutive steps had a non-finite loss or gradient: {self.run}/"
                "not-finite-*.jsonl names their clips; lower optim.lr, or check the dataset with "
                "`python -m pipeline.shards verify`"
            )

    def _log_bad_batch(self, batch: Batch) -> None:
        """Append the keys of a batch to `not-finite-rank-N.jsonl`."""
        row = {"step": self.step, "rank": self.world.rank, "clips": self.batches.clip_keys(batch)}
        with (self.run / f"not-finite-rank-{self.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _is_validation_step(self) -> bool:
        """Whether the model is validated after this step."""
        return bool(self.settings.val_every) and self.step % self.settings.val_every == 0

    def validate(self) -> dict[str, float]:
        """The loss over every validation clip exactly once; empty without validation clips."""
        self.engine.eval()
        meter = LossMeter(self.model.config.codebooks, self.world.device)
        with torch.no_grad():
            for batch, counts in self.batches.validation():
                self._reset_watchdog()
                loss_sums, num_tokens = self._losses(batch)
                meter.add(loss_sums * counts, num_tokens * counts, len(batch.frames))
        self.engine.train()
        self.meter.restart_timer()  # validation must not count in the speed of training
        metrics = meter.losses(self.world, "val") if self.world.all_reduce_sum([meter.clips])[0] else {}
        if metrics:
            self._val_loss = (self.step, metrics["val/loss"])
        return metrics

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The output of the model for a batch, see `CodecGPT.forward`."""
        codes, frames, prompts = batch.to(self.world.device)
        losses: tuple[Tensor, Tensor] = self.engine(codes, frames, self.model.condition_values(prompts, batch.labels))
        return losses

    def save(self) -> None:
        """Write a checkpoint; in the background, a later step commits it once all ranks have written their files."""
        self._reset_watchdog()
        if self._pending:
            self._commit_checkpoint()
        state: dict[str, Any] = {"step": self.step, "place": self.samples_seen, "seed": self.context.settings.seed}
        state |= {"settings": dict(self.recorded_settings)}
        state |= {"frames": self.frames_seen, "skipped": self.skipped_steps, "meter": self.meter.state(self.world)}
        if self._val_loss[0] == self.step:
            state["val_loss"] = self._val_loss[1]
        background = self.settings.async_checkpoint
        self._pending = checkpoint.start_save(self.engine, self.run, self.world, state, self.ema, background)
        if not background:
            self._commit_checkpoint()

    def _commit_checkpoint(self) -> None:
        assert self._pending is not None
        settings = self.settings
        retention = checkpoint.RetentionPolicy(settings.keep, settings.keep_best, settings.keep_every)
        self._observer.on_checkpoint(checkpoint.commit(self.world, self._pending, retention))
        self._pending = None

    def _reset_watchdog(self) -> None:
        """Restart the watchdog's timer: when it expires, it prints all stacks and ends this rank, and so the job."""
        faulthandler.dump_traceback_later(self.settings.watchdog_seconds, exit=True)

    def _training_metrics(self) -> dict[str, float]:
        """Metrics over the steps since the last row of the log."""
        meter = self.meter
        seconds = time.perf_counter() - meter.started_at
        host_gib = peak_memory() / 2**30
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
        if peak := peak_flops(self.world.device):
            config, frames = self.model.config, tokens / max(1, clips) / self.model.config.codebooks
            flops = clips * model_stats.training_flops(config, frames, self.model.adapter)
            metrics["speed/mfu"] = flops / seconds / self.world.world_size / peak
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
