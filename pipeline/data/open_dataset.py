"""A tokenized dataset for any training loop.

    dataset = open_dataset("shards/nsynth")
    for batch in dataset.loader(batch_size=16, epochs=3):
        batch.codes, batch.frames, batch.prompts      # [B, K, T], [B], [B, N, P]

Letters: B clips, K codebooks, T frames, N prompt vectors of a clip, P prompt width.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.sampler import EpochSampler
from pipeline.data.shard_cache import LocalShardCache

SHUFFLE_SHARDS = 256  # as data.shuffle_shards of conf/train.yaml
CACHE_GIB = 50.0  # as data.cache_gib


class Dataset(ShardedDataset):
    """One split of a tokenized dataset. `len` is its number of clips, `manifest` describes codec and embedder."""

    def loader(
        self,
        batch_size: int,
        *,
        epochs: int | None = 1,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_frames: int | None = None,
        drop_last: bool | None = None,
        position: int = 0,
        shuffle_shards: int = SHUFFLE_SHARDS,
        num_threads: int = 1,
    ) -> DatasetLoader:
        """Return an iterable of batches.

        Args:
            batch_size: The number of clips in a batch of one rank.
            epochs: The epoch after which iteration ends, counted from position 0; None: never.
            shuffle: Whether each epoch has a new random order, or all have the order of the shards.
            seed: The seed of the order, which is the same on all ranks.
            rank: The rank that reads; each reads its own clips.
            world_size: The number of ranks.
            max_frames: Longer clips are cropped to this length, at a random start if `shuffle`.
            drop_last: Whether an incomplete last batch is left out, so that all ranks have the same number of
                batches. By default, if there are several ranks.
            position: Where to start: the `position` of the last batch to resume, or `epoch * len(dataset)`.
            shuffle_shards: The number of shards that are shuffled together; 0: all.
            num_threads: The number of threads that prefetch; 0: none.

        Raises:
            InputError: The values do not fit together, or there is no batch to read.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise InputError(f"batch_size={batch_size}, rank={rank}, world_size={world_size}: expected a batch_size of "
                             "at least 1, and a rank of 0 to world_size - 1")  # fmt: skip
        if epochs is not None and epochs < 1:
            raise InputError(f"epochs={epochs}: expected at least 1, or None for an endless stream")
        if position < 0 or (position and not shuffle):
            raise InputError(f"position={position}: expected 0 or more, and 0 without shuffle")
        if not len(self):
            raise InputError(f"{self.store.display_path()} has no clips in split={self.split}")
        drop = world_size > 1 if drop_last is None else drop_last
        if drop and epochs is not None and batch_size * world_size > len(self) * (epochs if shuffle else 1):
            raise InputError(
                f"{self.store.display_path()} has {len(self)} clips in split={self.split}, fewer than the "
                f"{world_size} x {batch_size} of a step: give a smaller batch_size or drop_last=False"
            )
        if not shuffle:
            return DatasetLoader(partial(self._in_order, batch_size, epochs, rank, world_size, max_frames, drop))
        loader = ShardDataLoader(
            [self], EpochSampler(self.clips_per_shard, seed, shuffle_shards), batch_size=batch_size, rank=rank,
            world_size=world_size, max_frames=max_frames, seed=seed, num_threads=num_threads,
        )  # fmt: skip
        return DatasetLoader(partial(self._shuffled, loader, epochs, position, drop))

    def _shuffled(self, loader: ShardDataLoader, epochs: int | None, position: int, drop_last: bool) -> Iterator[Batch]:
        with contextlib.closing(loader.batches(position)) as batches:  # type: ignore[type-var]  # a generator
            if epochs is None:
                yield from batches
                return
            left = max(0, epochs * len(self) - position)
            complete, rest = divmod(left, loader.batch_size * loader.world_size)
            yield from itertools.islice(batches, complete)
            own = min(loader.batch_size, rest - loader.rank * loader.batch_size)
            if own > 0 and not drop_last:
                yield _first_clips(next(batches), own, position + left)

    def _in_order(
        self, batch_size: int, epochs: int | None, rank: int, world_size: int, max_frames: int | None, drop_last: bool
    ) -> Iterator[Batch]:
        complete = len(self) // world_size // batch_size
        for _ in itertools.count() if epochs is None else range(epochs):
            batches = iter_once(self, batch_size, rank, world_size, max_frames)
            yield from itertools.islice(batches, complete) if drop_last else batches


class DatasetLoader:
    """The batches of one rank, from the same position each time that it is iterated. See `Dataset.loader`."""

    def __init__(self, batches: Callable[[], Iterator[Batch]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()


def _first_clips(batch: Batch, clips: int, position: int) -> Batch:
    frames = batch.frames[:clips]
    codes = batch.codes[:clips, :, : int(frames.max())]
    labels = {name: values[:clips] for name, values in batch.labels.items()}
    return Batch(codes, frames, batch.prompts_fp16[:clips], position, batch.clip_positions[:clips], labels)


def open_dataset(
    folder: str | Path,
    split: str = "train",
    *,
    codebooks: int | None = None,
    cache_dir: str | Path | None = None,
    cache_gib: float = CACHE_GIB,
    max_lost_fraction: float = 0.0,
) -> Dataset:
    """Open one split of a dataset that `pipeline.preprocess` wrote.

    Example:
        >>> import pipeline
        >>> dataset = pipeline.open_dataset("shards/nsynth")
        >>> for batch in dataset.loader(batch_size=16):
        ...     loss = batch.codes.float().mean()  # codes [B, K, T], frames [B], prompts [B, N, P]
        >>> batch.codes.shape[1] == dataset.codebooks
        True

    Args:
        folder: The folder with `manifest.json`, or its address (`s3://BUCKET/DIR`).
        split: `train`, `valid` or `test`.
        codebooks: The number of codebooks to read; all by default.
        cache_dir: The folder for local copies of remote shards. Without it each remote shard is read into memory.
        cache_gib: The maximum size of `cache_dir`.
        max_lost_fraction: The fraction of clips that may be lost with missing or damaged shards. Other clips replace
            them in a shuffled order.

    Raises:
        InputError: The dataset is missing or does not match, or too many clips are lost.
    """
    shard_cache = None if cache_dir is None else LocalShardCache(cache_dir, cache_gib)
    dataset = Dataset(folder, split, codebooks, max_lost_fraction=max_lost_fraction, shard_cache=shard_cache)
    if split not in dataset.manifest.splits:
        raise InputError(f"split={split}: {folder} has {', '.join(dataset.manifest.splits)}")
    return dataset
