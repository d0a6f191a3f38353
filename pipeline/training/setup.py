"""What `pipeline.train` wires together: caches, model, DeepSpeed engine, trainer, tracking."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError, redact_all
from pipeline.common.files import write_atomic
from pipeline.data.bucketing import LengthBucketedSampler, bucket_by_length
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.sampler import EpochSampler, MixtureSampler, Sampler
from pipeline.data.shard_cache import LocalShardCache
from pipeline.models import codec_gpt as models
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT, ModelConfig
from pipeline.models.patterns import Pattern
from pipeline.tracking import base
from pipeline.training import optimizer as optim
from pipeline.training import zero_patches
from pipeline.training.checkpoint import RetentionPolicy
from pipeline.training.distributed import World
from pipeline.training.run_lock import RunLock, lock_run
from pipeline.training.run_log import open_log
from pipeline.training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    from pipeline.training.audio_samples import AudioSampler

log = logging.getLogger("pipeline")
_VALID_OPEN = 8  # shards of validation, which are read one after another
_PROMPTS = 10_000  # clips whose prompts tell their mean and deviation


def open_datasets(cfg: DictConfig) -> tuple[list[tuple[ShardedDataset, ShardedDataset]], Sampler]:
    """The training and validation splits of each cache, and the order of training.

    Raises InputError, before any work, where a cache is missing, empty, or not of the codec that the settings name.
    """
    folders = caches_of(cfg)
    pairs: list[tuple[ShardedDataset, ShardedDataset]] = []
    copies, foreign = LocalShardCache(cfg.data.cache_dir, cfg.data.cache_gib), _foreign(cfg)
    for folder in folders.values():
        train, valid = (
            ShardedDataset(
                folder,
                cfg.data[kind],
                open_shards=n,
                max_lost_fraction=cfg.data.max_lost_fraction,
                shard_cache=copies,
                external=foreign,
            )
            for kind, n in (("train", 2 * cfg.data.shuffle_shards), ("valid", _VALID_OPEN))
        )
        train.manifest.check_codec({"name": cfg.codec.name}, cfg.codec.codebooks)
        if pairs:
            first = pairs[0][0].manifest
            train.manifest.check_codec(first.codec, cfg.codec.codebooks)
            train.manifest.check_embedder(first.embedder)
        if not len(train):
            known = ", ".join(f"{name} ({train.manifest.num_samples(name)} clips)" for name in train.manifest.splits)
            raise InputError(
                f"{folder} has no clips in data.train={cfg.data.train}: it has {known or 'no split at all'}"
            )
        for split in (train, valid):
            split.codebooks = cfg.codec.codebooks
        pairs.append((train, valid))
    return pairs, _order(cfg, [*folders], pairs)


def caches_of(cfg: DictConfig) -> dict[str, str]:
    """Return the addresses of the caches that are read, by name."""
    return {"": cfg.shards} if isinstance(cfg.shards, str) else dict(cfg.shards)


def _foreign(cfg: DictConfig) -> ExternalSource | None:
    """What the settings say of shards without a manifest."""
    if cfg.data.external is None:
        return None
    told = {part: dict(cfg.data.external.get(part) or {}) for part in ("codec", "embedder")}
    return ExternalSource(**told, index_dir=Path(cfg.data.cache_dir))


def _order(cfg: DictConfig, names: list[str], pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> Sampler:
    orders = {
        name: EpochSampler(train.clips_per_shard, cfg.seed + i, cfg.data.shuffle_shards, cfg.data.interleave)
        for i, (name, (train, _)) in enumerate(zip(names, pairs, strict=True))
    }
    order: EpochSampler | MixtureSampler = next(iter(orders.values()))
    if len(orders) > 1:
        weights = (
            dict(cfg.mixture_weights)
            if cfg.mixture_weights
            else {name: float(order.epoch_size) for name, order in orders.items()}
        )
        order = MixtureSampler(orders, weights, cfg.seed)
    return bucket_by_length(order, _lengths(cfg, pairs), cfg.seed, cfg.data.max_padding)


def _lengths(cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> list[np.ndarray]:
    """The frames of every training clip as it is read, cropped where that is asked for: [clips] for each cache."""
    crop = _crop(cfg, pairs) or 2**31 - 1
    return [np.minimum(train.lengths(), crop) for train, _ in pairs]


def model_config(cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> ModelConfig:
    """The model that the settings ask for, made to fit the shards. Raises InputError where it cannot."""
    manifest, m = pairs[0][0].manifest, cfg.model
    frames = max_frames(cfg, pairs)
    steps = Pattern(cfg.pattern.name, cfg.codec.codebooks).num_steps(frames + cfg.data.end_of_audio)
    positions = max(1024, steps) if m.positions == "auto" else int(m.positions)
    if steps > positions:
        raise InputError(
            f"clips of {frames} frames are {steps} steps under pattern={cfg.pattern.name} with {cfg.codec.codebooks} "
            f"codebooks, and model.positions={positions}: give auto, or crop by data.seconds"
        )
    return ModelConfig(
        codebooks=cfg.codec.codebooks,
        pattern=cfg.pattern.name,
        prompt_dim=manifest.prompt_dim,
        width=m.width,
        layers=m.layers,
        heads=m.heads,
        positions=positions,
        dropout=m.dropout,
        prompt_dropout=m.prompt_dropout,
        end_of_audio=cfg.data.end_of_audio,
        frames=frames,
        codec={**manifest.codec, "codebooks": cfg.codec.codebooks},
        embedder=manifest.embedder,
    )


def steps_from_compute_budget(
    cfg: DictConfig, config: ModelConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]], world: World
) -> None:
    """Where the settings give an amount of arithmetic instead of steps, set the steps that it makes."""
    if cfg.trainer.compute_budget_pflop is None:
        return
    frames = float(np.concatenate(_lengths(cfg, pairs)).mean())
    a_step = (
        model_stats.training_flops(config, frames)
        * cfg.trainer.micro_batch
        * cfg.trainer.gradient_accumulation_steps
        * world.world_size
    )
    cfg.trainer.steps = max(1, round(cfg.trainer.compute_budget_pflop * 1e15 / a_step))


def content_digests(cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> dict[str, str]:
    """A digest of the shards that are trained and validated on, by the setting that names them."""
    found = {}
    for name, splits in zip(caches_of(cfg), pairs, strict=True):
        for setting, split in zip(("shards", "data.valid"), splits, strict=True):
            rows = [f"{shard.samples} {shard.frames} {shard.bytes} {shard.sha256}" for shard in split.shards]
            key = f"{setting}.{name}" if name else setting
            found[key] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return found


def max_frames(cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> int:
    """The frames of the longest clip, or of a crop where that is shorter."""
    longest = max(split.max_frames() for pair in pairs for split in pair)
    crop = _crop(cfg, pairs)
    return longest if crop is None else min(crop, longest)


def _crop(cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> int | None:
    return None if cfg.data.seconds is None else round(cfg.data.seconds * pairs[0][0].manifest.frame_rate)


def init_run_dir(cfg: DictConfig, run: Path, world: World) -> RunLock:
    """Make and lock the run folder, write its settings, and send the log to its file and the terminal (first rank).

    Raises InputError while another training has the folder.
    """
    if world.is_main:
        run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(run, world)
    if world.is_main:
        base.apply_environment(cfg)
        told = redact_all(OmegaConf.to_container(cfg, resolve=True))
        write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(told)).encode())
    open_log(run / "log.txt" if world.is_main else None)
    world.barrier()
    return lock


def report_skipped(skipped: list[str], world: World) -> None:
    """Log, on the first rank, the damaged checkpoints that `resume=auto` has passed over: a line each."""
    if world.is_main:
        for line in skipped:
            log.warning(line)


def build_model(
    cfg: DictConfig, config: ModelConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]], fresh: bool
) -> CodecGPT:
    """The model, the same on all ranks. fresh: from its pretrained weights, if it has any; else they will be loaded.

    Raises InputError where pretrained weights cannot be had.
    """
    torch.manual_seed(cfg.seed)
    model = models.build_model(config, cfg.model.pretrained if fresh else None)
    model.fit_prompt_normalization(_sample_of_prompts(pairs))
    return model


def build_engine(cfg: DictConfig, model: CodecGPT, world: World, universal: bool = False) -> Any:
    """The model inside a DeepSpeed engine, with its optimizer.

    universal: whether it is going to load a checkpoint of another number of ranks. Raises InputError for settings that
    exclude each other.
    """
    import deepspeed

    t = cfg.trainer
    stage = cfg.deepspeed.zero_optimization.stage
    if t.ema and stage == 3:
        raise InputError("trainer.ema needs whole weights on the first rank: take deepspeed=zero2, or trainer.ema=0")
    model.to(world.device)
    model.label_smoothing = t.label_smoothing
    if t.activation_checkpointing:
        model.backbone.activation_checkpointing_enable()
    if zero_patches.should_compile(t.compile, stage, world.device.type == "cuda"):
        model.compile_parts()
    bf16 = use_bf16(cfg, world.device.type)
    alone = stage == 0 and not bf16
    settings = {
        **OmegaConf.to_container(cfg.deepspeed, resolve=True),  # type: ignore[dict-item]
        "train_micro_batch_size_per_gpu": cfg.trainer.micro_batch,
        "gradient_accumulation_steps": cfg.trainer.gradient_accumulation_steps,
        "gradient_clipping": 0.0 if alone else float(t.max_grad_norm),
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a step
    }
    optimizer = optim.build_adamw(model, cfg.optim, world.device, float(t.max_grad_norm) if alone else None)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    engine.config = redact_all(engine.config)  # DeepSpeed stores it in every checkpoint
    zero_patches.patch_zero_optimizer(engine)
    return engine


def use_bf16(cfg: DictConfig, device: str) -> bool:
    """Whether weights and activations are bf16. Raises InputError for a precision that this device has not."""
    asked = cfg.trainer.precision
    if asked not in ("auto", "bf16", "fp32"):
        raise InputError(f"trainer.precision={asked}: give auto, bf16 or fp32")
    if cfg.deepspeed.get("fp16") or cfg.deepspeed.get("bf16"):
        raise InputError("deepspeed.fp16 and deepspeed.bf16 are not read: precision is set by trainer.precision")
    chosen = bool(asked == "bf16" or (asked == "auto" and device == "cuda"))
    if chosen and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name()} has no bf16: give trainer.precision=fp32")
    return chosen


def _sample_of_prompts(pairs: list[tuple[ShardedDataset, ShardedDataset]]) -> torch.Tensor:
    """Prompts of the first clips on disk of each cache: [N, P]."""
    share = max(1, _PROMPTS // len(pairs))
    prompts = []
    for train, _ in pairs:
        for batch in iter_once(train, min(share, len(train), 500)):
            prompts.append(batch.prompts)
            if sum(map(len, prompts)) >= share:
                break
    return torch.cat(prompts)


def build_trainer(
    cfg: DictConfig,
    engine: Any,
    pairs: list[tuple[ShardedDataset, ShardedDataset]],
    order: Sampler,
    run: Path,
    world: World,
    recorded: Mapping[str, Any],
) -> Trainer:
    """The trainer of this rank, at step 0. recorded: the settings that its checkpoints keep."""
    t, crop = cfg.trainer, _crop(cfg, pairs)
    stream = ShardDataLoader(
        [train for train, _ in pairs], order, batch_size=t.micro_batch, rank=world.rank,
        world_size=world.world_size, max_frames=crop, seed=cfg.seed, num_threads=cfg.data.threads,
    )  # fmt: skip
    settings = TrainerConfig(
        steps=t.steps, gradient_accumulation_steps=t.gradient_accumulation_steps, lr=cfg.optim.lr,
        schedule=OmegaConf.to_container(cfg.optim.schedule, resolve=True), log_every=t.log_every, val_every=t.val_every,
        save_every=t.save_every, keep=RetentionPolicy(t.keep, t.keep_best, t.keep_every),
        async_checkpoint=t.async_checkpoint,
        seed=cfg.seed, ema=t.ema, max_skipped_steps=t.max_skipped_steps,
        watchdog_seconds=t.watchdog_seconds, peak_flops=peak_flops(world),
        recorded=recorded,
    )  # fmt: skip
    valid = [valid for _, valid in pairs]
    validation = partial(_validation, valid, t.micro_batch, world, crop)
    return Trainer(
        engine, world, settings, stream.batches, validation, lambda b: stream.clip_keys(b.clip_positions), run
    )


def peak_flops(world: World) -> float:
    """Dense bf16 operations a second that the maker states for this GPU; 0 where it is not known here."""
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    return next((tera * 1e12 for part, tera in _PEAK_TFLOPS.items() if part in name), 0.0)


# from NVIDIA's data sheets
_PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "4090": 165, "V100": 125}


def _validation(
    splits: list[ShardedDataset], batch: int, world: World, frames: int | None
) -> Iterator[tuple[Batch, bool]]:
    """Every clip of the splits once over all ranks, in as many batches on each; those that fill up do not count."""
    for split in splits:
        if not len(split):
            continue
        mine = iter_once(split, batch, world.rank, world.world_size, frames)
        spare = next(iter_once(split, 1, max_frames=frames))
        for _ in range(math.ceil(math.ceil(len(split) / world.world_size) / batch)):
            found = next(mine, None)
            yield (found or spare), found is not None


def log_run_summary(
    cfg: DictConfig,
    trainer: Trainer,
    pairs: list[tuple[ShardedDataset, ShardedDataset]],
    order: Sampler,
    changes: Sequence[str],
) -> None:
    """Say what is about to be trained on what. changes: what is no longer as it was before a resume."""
    world, t, config = trainer.world, cfg.trainer, trainer.model.config
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in trainer.model.parameters())
    clips, valid = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    total = t.micro_batch * t.gradient_accumulation_steps * world.world_size
    log.info("%s: %.1f M parameters, pattern %s, K %d", cfg.name, parameters / 1e6, config.pattern, config.codebooks)
    log.info("%d clips to learn from, %d to validate on, at %s", clips, valid, cfg.shards)
    log.info(
        "%d clips a step = %d micro_batch x %d gradient_accumulation_steps x %d ranks on %s; an epoch is %.1f steps",
        total, t.micro_batch, t.gradient_accumulation_steps, world.world_size, world.device.type,
        order.epoch_size / total,
    )  # fmt: skip
    if isinstance(order, LengthBucketedSampler):
        shares = 100 * order.padding_with, 100 * order.padding_without
        log.info("clips of like length share batches: %.1f %% of their frames are padding, not %.1f %%", *shares)
    if trainer.step:
        log.info("going on at step %d of %d (epoch %.2f)", trainer.step, t.steps, trainer.place / order.epoch_size)
    for change in changes:
        log.info("note: %s", change)


def start_tracker(cfg: DictConfig, run: Path, step: int, world: World) -> base.Tracker:
    """The tracker of the first rank, which knows what caches the run reads; the others' does nothing."""
    if not world.is_main:
        return base.Tracker()
    config = OmegaConf.to_container(cfg, resolve=True)
    tracker = base.build_tracker(run, step, cfg.name, config, cfg.tracking)  # type: ignore[arg-type]
    for folder in caches_of(cfg).values():
        tracker.log_artifact("cache", folder)
    return tracker


def build_audio_sampler(
    cfg: DictConfig, pairs: list[tuple[ShardedDataset, ShardedDataset]], world: World
) -> AudioSampler | None:
    """On the first rank, what lets the model be heard as it learns; None where nothing is to be heard, or can be.

    Under ZeRO-3 no rank has whole weights to play.
    """
    if not world.is_main or cfg.deepspeed.zero_optimization.stage == 3:
        return None
    from pipeline.training import audio_samples

    return audio_samples.build_audio_sampler(cfg.audio_samples, cfg.codec, pairs[0][1], world.device)


def make_log_callback(
    tracker: base.Tracker, trainer: Trainer, epoch: int, frame_rate: float, ears: AudioSampler | None
) -> Callable[[int, Mapping[str, float]], None]:
    """Send a row to the tracker, and a line of it to the log; with a validation loss go the sounds of that step.

    epoch: clips in one.
    """

    def report(step: int, row: Mapping[str, float]) -> None:
        if row:  # on any of its rows, so that each can be drawn over hours or epochs
            hours = trainer.frames / frame_rate / 3600
            row = {**row, "train/hours": hours, "train/epoch": trainer.place / epoch}
        tracker.log(step, row)
        shown = [f"{name} {row[name]:.4g}" for name in CONSOLE_METRICS if name in row]
        log.info("step %d/%d  %s", step, trainer.settings.steps, "  ".join(shown))
        if ears and "val/loss" in row:
            try:
                tracker.log_audio(step, ears.sample(trainer.model), ears.rate)
            except (RuntimeError, OSError) as error:  # a GPU without room for it, say: training needs no ears
                log.warning("step %d is not heard: %s", step, error)

    return report


CONSOLE_METRICS = ("train/loss", "val/loss", "train/lr", "train/grad_norm", "speed/clips_per_second")
