"""The datasets of a run: how they are opened, in which order clips are read, and what they imply for the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.common.errors import InputError
from pipeline.common.frames import count_frames
from pipeline.data.bucketing import bucket_by_length
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.labels import Vocabularies
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler, MixtureSampler, Sampler
from pipeline.data.shard_cache import LocalShardCache
from pipeline.models import model_stats
from pipeline.models.model_config import ModelConfig
from pipeline.training.conditions import label_names, merge_vocabularies
from pipeline.training.context import RunContext
from pipeline.training.finetune import Base
from pipeline.training.settings import DataSettings, TrainSettings

_VALID_OPEN_SHARDS = 8  # validation shards are read one after another
_NUM_PROMPTS = 10_000  # prompts from which their mean and deviation are estimated
_NO_CROP = 2**31 - 1
KEEP = "finetune.keep"  # the name of its dataset


@dataclass(frozen=True)
class TrainData:
    """The opened datasets of a run.

    Attributes:
        folders: folder or URL of each dataset, by name; a single dataset has the name "".
        train: training split of each dataset, in the same order.
        valid: validation split of each dataset, except `finetune.keep`.
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
    def vocabularies(self) -> Vocabularies:
        """The values of each label, over all datasets."""
        return merge_vocabularies(split.manifest.labels for split in self.train)

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
        for setting, splits in (("shards", self.train), ("data.valid", self.valid)):
            for name, split in zip(self.folders, splits, strict=False):  # finetune.keep, the last, has no validation
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


class RunBatches:
    """The batches of one rank, for the trainer."""

    def __init__(self, data: TrainData, context: RunContext) -> None:
        """Prepare the loader; nothing is read yet."""
        settings, self._world = context.settings, context.world
        self._data, self._micro_batch = data, settings.trainer.micro_batch
        self._loader = ShardDataLoader(
            data.train, data.sampler, batch_size=self._micro_batch, rank=self._world.rank,
            world_size=self._world.world_size, max_frames=data.crop, seed=settings.seed,
            num_threads=settings.data.threads,
        )  # fmt: skip

    def training(self, position: int) -> Iterator[Batch]:
        """Endless training batches from a position of the stream on."""
        return self._loader.batches(position)

    def clip_keys(self, batch: Batch) -> list[str]:
        """The keys of the clips of a training batch."""
        return self._loader.clip_keys(batch.clip_positions)

    def validation(self) -> Iterator[tuple[Batch, bool]]:
        """Every validation clip exactly once over all ranks, with the same number of batches on each rank.

        Yields:
            A batch, and whether it counts: a rank that has run out of clips repeats a batch that does not count.
        """
        ranks, size = self._world.world_size, self._micro_batch
        for split in self._data.valid:
            if not len(split):
                continue
            batches = iter_once(split, size, self._world.rank, ranks, self._data.crop)
            filler = next(iter_once(split, 1, max_frames=self._data.crop))
            for _ in range(math.ceil(math.ceil(len(split) / ranks) / size)):
                clips = next(batches, None)
                yield (clips or filler), clips is not None


def open_datasets(settings: TrainSettings, base: Base | None = None) -> TrainData:
    """Open the datasets of `shards=`, and `finetune.keep`, which is for training only.

    Args:
        settings: the settings.
        base: the model that is fine-tuned.

    Raises:
        InputError: a dataset is missing or empty, or was made by another codec or embedder than the settings, the base
            or the first dataset name.
    """
    data, codec, keep = settings.data, settings.codec, settings.finetune.keep
    folders = {"": settings.shards} if isinstance(settings.shards, str) else settings.shards
    if keep is not None:
        folders = {**folders, KEEP: keep}
    train: list[ShardedDataset] = []
    valid: list[ShardedDataset] = []
    shard_cache, external = LocalShardCache(data.cache_dir, data.cache_gib), _external_source(data)

    def open_split(folder: str, name: str, open_shards: int) -> ShardedDataset:
        return ShardedDataset(
            folder, name, open_shards=open_shards, max_lost_fraction=data.max_lost_fraction,
            shard_cache=shard_cache, external=external,
        )  # fmt: skip

    for name, folder in folders.items():
        train.append(open_split(folder, data.train, 2 * data.shuffle_shards))
        manifest, first = train[-1].manifest, train[0].manifest
        if base is not None:
            base.check_dataset(manifest)
        manifest.check_codec({"name": codec.name, "channels": codec.channels}, codec.streams)
        if manifest is not first:
            manifest.check_codec(first.codec, codec.streams)
            manifest.check_embedder(first.embedder)
        if not len(train[-1]):
            known = ", ".join(f"{name} ({manifest.num_samples(name)} clips)" for name in manifest.splits)
            raise InputError(f"{folder} has no clips in data.train={data.train}: its splits are {known or 'none'}")
        if name != KEEP:
            valid.append(open_split(folder, data.valid, _VALID_OPEN_SHARDS))
    for split in (*train, *valid):
        split.codebooks = codec.streams
        split.labels = label_names(settings.conditions)
    manifest = train[0].manifest
    rate, hop = manifest.codec["sample_rate"], manifest.hop_length
    crop = None if data.seconds is None else count_frames(data.seconds, rate, hop)
    return TrainData(folders, train, valid, _build_sampler(settings, [*folders], train, crop), crop)


def _external_source(data: DataSettings) -> ExternalSource | None:
    """Codec and embedder of external shards, which have no manifest."""
    if data.external is None:
        return None
    return ExternalSource(data.external.codec, data.external.embedder, index_dir=Path(data.cache_dir))


def _build_sampler(settings: TrainSettings, names: list[str], train: list[ShardedDataset], crop: int | None) -> Sampler:
    """The order of the training clips: shuffled, mixed, and bucketed by length where that saves padding."""
    data, seed = settings.data, settings.seed
    samplers = {
        name: EpochSampler(split.clips_per_shard, seed + i, data.shuffle_shards, data.interleave)
        for i, (name, split) in enumerate(zip(names, train, strict=True))
    }
    sampler: EpochSampler | MixtureSampler = next(iter(samplers.values()))
    if len(samplers) > 1:
        weights = settings.mixture_weights or {n: float(each.epoch_size) for n, each in samplers.items() if n != KEEP}
        if KEEP in samplers:
            share = settings.finetune.keep_weight
            weights = {**weights, KEEP: share / (1 - share) * sum(weights.values())}
        sampler = MixtureSampler(samplers, weights, seed)
    return bucket_by_length(sampler, _cropped_lengths(train, crop), seed, data.max_padding)


def _cropped_lengths(splits: list[ShardedDataset], crop: int | None) -> list[np.ndarray]:
    """Frames of every clip, after cropping: [clips] for each split."""
    return [np.minimum(split.lengths(), crop or _NO_CROP) for split in splits]


def steps_from_compute_budget(
    context: RunContext, config: ModelConfig, data: TrainData, base: Base | None = None
) -> int:
    """Optimizer steps that spend `trainer.compute_budget_pflop`; without one, `trainer.steps`."""
    trainer = context.settings.trainer
    if trainer.compute_budget_pflop is None:
        return trainer.steps
    flops_per_step = (
        model_stats.training_flops(config, data.mean_frames, base.adapter(config) if base else None)
        * context.clips_per_step
    )
    return max(1, round(trainer.compute_budget_pflop * 1e15 / flops_per_step))
