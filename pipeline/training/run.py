"""One training run: its folder, its trainer, and where its metrics and audio samples go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import redact_all
from pipeline.common.files import write_atomic
from pipeline.data.bucketing import LengthBucketedSampler
from pipeline.data.dataloader import ShardDataLoader
from pipeline.models.codec_gpt import CodecGPT
from pipeline.tracking.base import TrackedRun, Tracker, TrackerSettings
from pipeline.tracking.run_tracker import build_tracker, parse_tracker
from pipeline.training import checkpoint
from pipeline.training.data import TrainData
from pipeline.training.distributed import World
from pipeline.training.engine import build_engine, peak_flops
from pipeline.training.run_lock import RunLock, lock_run
from pipeline.training.run_log import open_log
from pipeline.training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    from pipeline.training.audio_samples import AudioSampler

log = logging.getLogger("pipeline")
CONSOLE_METRICS = ("train/loss", "val/loss", "train/lr", "train/grad_norm", "speed/clips_per_second")


def init_run_dir(
    cfg: DictConfig, run: Path, world: World, skipped: Sequence[str] = (), overridden: Collection[str] = ()
) -> RunLock:
    """Create and lock the run folder, write `config.yaml`, and open the log on the first rank.

    Args:
        cfg: The settings of training.
        run: The run folder.
        world: The ranks.
        skipped: A line to log for each damaged checkpoint that was skipped.
        overridden: The dotted names of the settings on the command line, which W&B's variables do not replace.

    Raises:
        InputError: another training uses the folder.
    """
    if world.is_main:
        run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(run, world)
    if world.is_main:
        cfg.tracking = _tracker_settings(cfg).with_environment(overridden).to_dict()
        settings = redact_all(OmegaConf.to_container(cfg, resolve=True))
        write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)).encode())
    open_log(run / "log.txt" if world.is_main else None)
    if world.is_main:
        for line in skipped:
            log.warning(line)
    world.barrier()
    return lock


def build_trainer(
    cfg: DictConfig,
    model: CodecGPT,
    data: TrainData,
    world: World,
    settings: Mapping[str, Any],
    resume_from: Path | None,
) -> Trainer:
    """Build the trainer of this rank, at step 0 or at the step of a checkpoint.

    Args:
        cfg: the settings.
        model: the model to train.
        data: the datasets.
        world: the ranks.
        settings: the settings that each checkpoint records (`resume_check.training_settings`).
        resume_from: a checkpoint, or None.
    """
    t, run = cfg.trainer, Path(cfg.run)
    universal = resume_from is not None and checkpoint.needs_universal(resume_from, world)
    engine = build_engine(cfg, model, world, universal)
    loader = ShardDataLoader(
        data.train, data.sampler, batch_size=t.micro_batch, rank=world.rank, world_size=world.world_size,
        max_frames=data.crop, seed=cfg.seed, num_threads=cfg.data.threads,
    )  # fmt: skip
    config = TrainerConfig(
        steps=t.steps,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        lr=cfg.optim.lr,
        schedule=OmegaConf.to_container(cfg.optim.schedule, resolve=True),
        log_every=t.log_every,
        val_every=t.val_every,
        save_every=t.save_every,
        retention=checkpoint.RetentionPolicy(t.keep, t.keep_best, t.keep_every),
        async_checkpoint=t.async_checkpoint,
        seed=cfg.seed,
        ema=t.ema,
        max_skipped_steps=t.max_skipped_steps,
        watchdog_seconds=t.watchdog_seconds,
        peak_flops=peak_flops(world.device),
        recorded_settings=settings,
    )
    validation_batches = partial(data.validation_batches, t.micro_batch, world)
    trainer = Trainer(
        engine,
        world,
        config,
        loader.batches,
        validation_batches,
        lambda batch: loader.clip_keys(batch.clip_positions),
        run,
    )
    if resume_from is not None:
        trainer.resume(resume_from)
    return trainer


def log_run_summary(cfg: DictConfig, trainer: Trainer, data: TrainData, changes: Sequence[str]) -> None:
    """Log what is about to be trained on which data.

    Args:
        cfg: the settings.
        trainer: the trainer, resumed where there is a checkpoint.
        data: the datasets.
        changes: a line for each setting that has changed since the checkpoint.
    """
    world, t, config = trainer.world, cfg.trainer, trainer.model.config
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in trainer.model.parameters())
    clips_per_step = t.micro_batch * t.gradient_accumulation_steps * world.world_size
    epoch, sampler = data.sampler.epoch_size, data.sampler
    log.info("%s: %.1f M parameters, pattern %s, K %d", cfg.name, parameters / 1e6, config.pattern, config.codebooks)
    log.info("%d training clips and %d validation clips of %s", data.num_train_clips, data.num_valid_clips, cfg.shards)
    log.info(
        "%d clips per step = %d micro_batch x %d gradient_accumulation_steps x %d ranks on %s; %.1f steps per epoch",
        clips_per_step, t.micro_batch, t.gradient_accumulation_steps, world.world_size, world.device.type,
        epoch / clips_per_step,
    )  # fmt: skip
    if isinstance(sampler, LengthBucketedSampler):
        percentages = 100 * sampler.padding_with, 100 * sampler.padding_without
        log.info("clips are batched by length: %.1f %% of the frames are padding instead of %.1f %%", *percentages)
    if trainer.step:
        log.info("resuming at step %d of %d (epoch %.2f)", trainer.step, t.steps, trainer.samples_seen / epoch)
    for line in changes:
        log.info("note: %s", line)


def _tracker_settings(cfg: DictConfig) -> TrackerSettings:
    return parse_tracker(OmegaConf.to_container(cfg.tracking, resolve=True))  # type: ignore[arg-type]


def start_tracker(cfg: DictConfig, data: TrainData, trainer: Trainer) -> Tracker:
    """The tracker of the first rank, with the datasets as input artifacts; that of the other ranks does nothing."""
    if not trainer.world.is_main:
        return Tracker()
    config = OmegaConf.to_container(cfg, resolve=True)
    run = TrackedRun(trainer.run, trainer.step, cfg.name, config)  # type: ignore[arg-type]
    tracker = build_tracker(_tracker_settings(cfg), run)
    for folder in data.folders.values():
        tracker.log_artifact("cache", folder)
    return tracker


def build_audio_sampler(cfg: DictConfig, data: TrainData, world: World) -> AudioSampler | None:
    """The audio sampler of the first rank; None where no samples are generated.

    At ZeRO-3 no rank has all weights, so nothing can be generated.
    """
    if not world.is_main or cfg.deepspeed.zero_optimization.stage == 3:
        return None
    from pipeline.training import audio_samples

    return audio_samples.build_audio_sampler(cfg.audio_samples, cfg.codec, data.valid[0], world.device)


def make_log_callback(
    cfg: DictConfig, tracker: Tracker, trainer: Trainer, data: TrainData
) -> Callable[[int, Mapping[str, float]], None]:
    """A function that sends metrics to the tracker and to the log, and audio samples after each validation."""
    audio_sampler = build_audio_sampler(cfg, data, trainer.world)

    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        if metrics:  # so that each metric can be plotted over hours or epochs
            hours = trainer.frames_seen / data.manifest.frame_rate / 3600
            epochs = trainer.samples_seen / data.sampler.epoch_size
            metrics = {**metrics, "train/hours": hours, "train/epoch": epochs}
        tracker.log(step, metrics)
        columns = [f"{name} {metrics[name]:.4g}" for name in CONSOLE_METRICS if name in metrics]
        log.info("step %d/%d  %s", step, trainer.config.steps, "  ".join(columns))
        if audio_sampler and "val/loss" in metrics:
            try:
                tracker.log_audio(step, audio_sampler.sample(trainer.model), audio_sampler.sample_rate)
            except (RuntimeError, OSError) as error:  # for example a GPU without free memory
                log.warning("no audio samples at step %d: %s", step, error)

    return on_log


def export_newest(trainer: Trainer, tracker: Tracker, write_card: Callable[[Path, dict[str, Any]], object]) -> None:
    """Export the checkpoint that the trainer has just written, with its model card, to `RUN/export`."""
    newest = trainer.run / "checkpoints" / f"step-{trainer.step}"
    checkpoint.export(newest, trainer.run / "export")
    write_card(newest, checkpoint.read_metadata(newest))
    tracker.log_artifact("export", trainer.run / "export")
