"""One training run: its folder, its trainer, and where its metrics and audio samples go."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from pipeline.common.errors import redact_all
from pipeline.common.files import write_atomic
from pipeline.common.settings import format_override
from pipeline.data.bucketing import LengthBucketedSampler
from pipeline.models.codec_gpt import CodecGPT
from pipeline.tracking.base import TrackedRun, Tracker
from pipeline.tracking.run_tracker import build_tracker
from pipeline.training import checkpoint
from pipeline.training.audio_samples import build_audio_sampler
from pipeline.training.context import RunContext
from pipeline.training.data import RunBatches, TrainData
from pipeline.training.engine import build_engine
from pipeline.training.run_lock import RunLock, lock_run
from pipeline.training.run_log import StepProgress, open_log
from pipeline.training.trainer import Observer, Trainer

log = logging.getLogger("pipeline")
CONSOLE_METRICS = ("train/loss", "val/loss", "train/lr", "train/grad_norm", "speed/clips_per_second")


def init_run_dir(context: RunContext, skipped: Sequence[str] = ()) -> RunLock:
    """Create and lock the run folder, write `config.yaml`, and open the log on the first rank.

    Args:
        context: the run.
        skipped: a line to log for each damaged checkpoint that was skipped.

    Raises:
        InputError: another training uses the folder.
    """
    run, world = context.run_dir, context.world
    if world.is_main:
        run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(run, world)
    if world.is_main:
        settings = redact_all(context.settings.to_dict())
        write_atomic(run / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    open_log(run / "log.txt" if world.is_main else None)
    if world.is_main:
        for line in skipped:
            log.warning(line)
    world.barrier()
    return lock


def build_trainer(
    context: RunContext,
    model: CodecGPT,
    data: TrainData,
    recorded_settings: Mapping[str, Any],
    resume_from: checkpoint.Checkpoint | None,
) -> Trainer:
    """Build the trainer of this rank, at step 0 or at the step of a checkpoint.

    Args:
        context: the run.
        model: the model to train.
        data: the datasets.
        recorded_settings: the settings that each checkpoint records (`resume_check.training_settings`).
        resume_from: a checkpoint, or None.
    """
    engine = build_engine(context, model, resume_from is not None and resume_from.needs_universal(context.world))
    trainer = Trainer(context, engine, RunBatches(data, context), recorded_settings)
    if resume_from is not None:
        trainer.resume(resume_from)
    return trainer


def log_run_summary(context: RunContext, trainer: Trainer, data: TrainData, notes: Sequence[str]) -> None:
    """Log what is about to be trained on which data.

    Args:
        context: the run.
        trainer: the trainer, resumed where there is a checkpoint.
        data: the datasets.
        notes: lines about the base, and about each setting that has changed since the checkpoint.
    """
    settings, t, config = context.settings, context.settings.trainer, trainer.model.config
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in trainer.model.parameters())
    epoch, sampler, clips = data.sampler.epoch_size, data.sampler, context.clips_per_step
    log.info(
        "%s: %.1f M parameters, pattern %s, K %d", settings.name, parameters / 1e6, config.pattern, config.codebooks
    )
    log.info(
        "%d training clips and %d validation clips of %s", data.num_train_clips, data.num_valid_clips, settings.shards
    )
    log.info(
        "%d clips per step = %d micro_batch x %d gradient_accumulation_steps x %d ranks on %s; %.1f steps per epoch",
        clips, t.micro_batch, t.gradient_accumulation_steps, context.world.world_size, context.world.device.type,
        epoch / clips,
    )  # fmt: skip
    if isinstance(sampler, LengthBucketedSampler):
        percentages = 100 * sampler.padding_with, 100 * sampler.padding_without
        log.info("clips are batched by length: %.1f %% of the frames are padding instead of %.1f %%", *percentages)
    if trainer.step:
        log.info("resuming at step %d of %d (epoch %.2f)", trainer.step, t.steps, trainer.samples_seen / epoch)
    for line in [*context.notes, *notes]:
        log.info("note: %s", line)


class RunObserver(Observer):
    """Sends metrics to the tracker and to the log, and generates audio samples after each validation.

    Attributes:
        tracker: that of the first rank, with the datasets as its inputs; that of the other ranks does nothing.
        exit_code: what the tracker records when the `with` block ends.
    """

    def __init__(self, context: RunContext, trainer: Trainer, data: TrainData) -> None:
        self.trainer, self._data, self.exit_code = trainer, data, 1
        self._progress = StepProgress(trainer.step, context.settings.trainer.steps, context.world.is_main)
        self._audio_sampler, self.tracker = None, Tracker()
        if not context.world.is_main:
            return
        settings = context.settings
        tracked = TrackedRun(context.run_dir, trainer.step, settings.name, settings.to_dict())
        self.tracker = build_tracker(settings.tracking, tracked)
        for folder in data.folders.values():
            self.tracker.log_artifact("cache", folder)
        if settings.deepspeed.zero_optimization.stage < 3:  # at ZeRO-3 no rank has all weights
            self._audio_sampler = build_audio_sampler(
                settings.audio_samples, settings.codec, data.valid[0], context.world.device
            )

    def __enter__(self) -> RunObserver:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self.tracker.close(self.exit_code)

    def on_step(self, step: int) -> None:
        self._progress.update(step)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        if metrics:  # so that each metric can be plotted over hours or epochs
            hours = self.trainer.frames_seen / self._data.manifest.frame_rate / 3600
            epochs = self.trainer.samples_seen / self._data.sampler.epoch_size
            metrics = {**metrics, "train/hours": hours, "train/epoch": epochs}
        self.tracker.log(step, metrics)
        columns = [f"{name} {metrics[name]:.4g}" for name in CONSOLE_METRICS if name in metrics]
        columns += [time_left] if (time_left := self._progress.time_left()) else []
        log.info("step %d/%d  %s", step, self._progress.steps, "  ".join(columns))
        if self._audio_sampler and "val/loss" in metrics:
            try:
                samples = self._audio_sampler.sample(self.trainer.model)
                self.tracker.log_audio(step, samples, self._audio_sampler.sample_rate)
            except (RuntimeError, OSError) as error:  # for example a GPU without free memory
                log.warning("no audio samples at step %d: %s", step, error)

    def on_checkpoint(self, folder: Path) -> None:
        self.tracker.log_artifact("checkpoint", folder)


def export_newest(observer: RunObserver, write_card: Callable[[Path, dict[str, Any]], object]) -> None:
    """Export the checkpoint that the trainer has just written, with its model card, to `RUN/export`."""
    run = observer.trainer.run
    newest = checkpoint.Checkpoint.read(run / "checkpoints" / f"step-{observer.trainer.step}")
    checkpoint.export(newest.path, run / "export")
    write_card(newest.path, newest.metadata)
    observer.tracker.log_artifact("export", run / "export")


def log_next_commands(context: RunContext, data: TrainData) -> None:
    """Log what to run next with the model of this run."""
    commands = {"generate": {"run": context.run_dir, "out": "sound.wav"}}
    if data.num_valid_clips:
        shards, split = next(iter(data.folders.values())), context.settings.data.valid
        commands["evaluate"] = {"run": context.run_dir, "shards": shards, "split": split}
    for command, values in commands.items():
        overrides = [format_override(name, value) for name, value in values.items()]
        log.info("next: python -m pipeline.%s %s", command, shlex.join(overrides))
