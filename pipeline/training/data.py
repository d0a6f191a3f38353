"""The datasets of a run: how they are opened, in which order clips are read, and what they imply for the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from pipeline.common.errors import InputError
from pipeline.data.bucketing import bucket_by_length
from pipeline.data.dataloader import Batch, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler, MixtureSampler, Sampler
from pipeline.data.shard_cache import LocalShardCache
from pipeline.models import model_stats
from pipeline.models.codec_gpt import ModelConfig
from pipeline.training.distributed import World

_VALID_OPEN_SHARDS = 8  # validation shards are read one after another
_NUM_PROMPTS = 10_000  # prompts from which their mean and deviation are estimated
_NO_CROP = 2**31 - 1


@dataclass(frozen=True)
class TrainData:
    """The opened datasets of a run.

    Attributes:
        folders: folder or URL of each dataset, by name; a single dataset has the name "".
        train: training split of each dataset, in the same order.
        valid: validation split of each dataset.
        sampler: order of the training clips of all datasets.
        crop: longer clips are cropped to this number of frames; None: no crop.
    """

    folders: dict[str, str]
    train: list[ShardedDataset]
    valid: list[ShardedDataset]
    sampler: Sampler
    crop: int | None

    @property
    def manifest(self) -> Manifest:
        """Manifest of the first dataset; codec and embedder are the same in all."""
        return self.train[0].manifest

    @property
    def num_train_clips(self) -> int:
        """Number of training clips."""
        return sum(map(len, self.train))

    @property
    def num_valid_clips(self) -> int:
        """Number of validation clips."""
        return sum(map(len, self.valid))

    @property
    def max_frames(self) -> int:
        """Frames of the longest clip, after cropping."""
        longest = max(split.max_frames() for split in (*self.train, *self.valid))
        return longest if self.crop is None else min(self.crop, longest)

    @property
    def mean_frames(self) -> float:
        """Mean frames of a training clip, after cropping."""
        return float(np.concatenate(_cropped_lengths(self.train, self.crop)).mean())

    def content_digests(self) -> dict[str, str]:
        """A sha256 of the shards of each split, by the setting that names it."""
        digests = {}
        for name, *splits in zip(self.folders, self.train, self.valid, strict=True):
            for setting, split in zip(("shards", "data.valid"), splits, strict=True):
                rows = [f"{shard.samples} {shard.frames} {shard.bytes} {shard.sha256}" for shard in split.shards]
                key = f"{setting}.{name}" if name else setting
                digests[key] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return digests

    def sample_prompts(self) -> torch.Tensor:
        """Prompts of the first clips on disk of each dataset: [N, P]."""
        per_dataset = max(1, _NUM_PROMPTS // len(self.train))
        prompts: list[torch.Tensor] = []
        for split in self.train:
            for batch in iter_once(split, min(per_dataset, len(split), 500)):
                prompts.append(batch.prompts)
                if sum(map(len, prompts)) >= per_dataset:
                    break
        return torch.cat(prompts)

    def validation_batches(self, batch: int, world: World) -> Iterator[tuple[Batch, bool]]:
        """Every validation clip exactly once over all ranks, with the same number of batches on each rank.

        Yields:
            A batch, and whether it counts: a rank that has run out of clips repeats a batch that does not count.
        """
        for split in self.valid:
            if not len(split):
                continue
            batches = iter_once(split, batch, world.rank, world.world_size, self.crop)
            filler = next(iter_once(split, 1, max_frames=self.crop))
            for _ in range(math.ceil(math.ceil(len(split) / world.world_size) / batch)):
                clips = next(batches, None)
                yield (clips or filler), clips is not None


def open_datasets(cfg: DictConfig) -> TrainData:
    """Open the datasets of `shards=`.

    Raises:
        InputError: a dataset is missing or empty, or was made by another codec or embedder than the settings or the
            first dataset name.
    """
    folders = {"": cfg.shards} if isinstance(cfg.shards, str) else dict(cfg.shards)
    train: list[ShardedDataset] = []
    valid: list[ShardedDataset] = []
    shard_cache, external = LocalShardCache(cfg.data.cache_dir, cfg.data.cache_gib), _external_source(cfg)

    def open_split(folder: str, name: str, open_shards: int) -> ShardedDataset:
        return ShardedDataset(
            folder, name, open_shards=open_shards, max_lost_fraction=cfg.data.max_lost_fraction,
            shard_cache=shard_cache, external=external,
        )  # fmt: skip

    for folder in folders.values():
        train.append(open_split(folder, cfg.data.train, 2 * cfg.data.shuffle_shards))
        valid.append(open_split(folder, cfg.data.valid, _VALID_OPEN_SHARDS))
        _check_manifest(train[-1].manifest, train[0].manifest, cfg)
        if not len(train[-1]):
            splits = train[-1].manifest
            known = ", ".join(f"{name} ({splits.num_samples(name)} clips)" for name in splits.splits)
            raise InputError(f"{folder} has no clips in data.train={cfg.data.train}: its splits are {known or 'none'}")
        train[-1].codebooks = valid[-1].codebooks = cfg.codec.codebooks
    crop = None if cfg.data.seconds is None else round(cfg.data.seconds * train[0].manifest.frame_rate)
    return TrainData(folders, train, valid, _build_sampler(cfg, [*folders], train, crop), crop)


def _external_source(cfg: DictConfig) -> ExternalSource | None:
    """Codec and embedder of external shards, which have no manifest."""
    if cfg.data.external is None:
        return None
    identities = {part: dict(cfg.data.external.get(part) or {}) for part in ("codec", "embedder")}
    return ExternalSource(**identities, index_dir=Path(cfg.data.cache_dir))


def _check_manifest(manifest: Manifest, first: Manifest, cfg: DictConfig) -> None:
    """Raises InputError unless a dataset has the codec of the settings, and codec and embedder of the first dataset."""
    manifest.check_codec({"name": cfg.codec.name}, cfg.codec.codebooks)
    if manifest is not first:
        manifest.check_codec(first.codec, cfg.codec.codebooks)
        manifest.check_embedder(first.embedder)


def _build_sampler(cfg: DictConfig, names: list[str], train: list[ShardedDataset], crop: int | None) -> Sampler:
    """The order of the training clips: shuffled, mixed, and bucketed by length where that saves padding."""
    samplers = {
        name: EpochSampler(split.clips_per_shard, cfg.seed + i, cfg.data.shuffle_shards, cfg.data.interleave)
        for i, (name, split) in enumerate(zip(names, train, strict=True))
    }
    sampler: EpochSampler | MixtureSampler = next(iter(samplers.values()))
    if len(samplers) > 1:
        by_size = {name: float(each.epoch_size) for name, each in samplers.items()}
        weights = dict(cfg.mixture_weights) if cfg.mixture_weights else by_size
        sampler = MixtureSampler(samplers, weights, cfg.seed)
    return bucket_by_length(sampler, _cropped_lengths(train, crop), cfg.seed, cfg.data.max_padding)


def _cropped_lengths(splits: list[ShardedDataset], crop: int | None) -> list[np.ndarray]:
    """Frames of every clip, after cropping: [clips] for each split."""
    return [np.minimum(split.lengths(), crop or _NO_CROP) for split in splits]


def steps_from_compute_budget(cfg: DictConfig, config: ModelConfig, data: TrainData, world: World) -> int:
    """Optimizer steps that spend `trainer.compute_budget_pflop`; without one, `trainer.steps`."""
    t = cfg.trainer
    if t.compute_budget_pflop is None:
        return int(t.steps)
    clips_per_step = t.micro_batch * t.gradient_accumulation_steps * world.world_size
    flops_per_step = model_stats.training_flops(config, data.mean_frames) * clips_per_step
    return max(1, round(t.compute_budget_pflop * 1e15 / flops_per_step))
