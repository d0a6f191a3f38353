"""Length bucketing: less padding, and the guarantees of the sampler still hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import bucketing
from pipeline.data.bucketing import LengthBucketedSampler, bucket_by_length, padding_fraction
from pipeline.data.dataloader import ShardDataLoader
from pipeline.data.dataset import ShardedDataset
from pipeline.data.sampler import EpochSampler, MixtureSampler
from tests.data.test_sampler import ids
from tests.helpers.caches import clip_numbers, write_cache


def lengths_of(clips: list[int], seed: int = 0) -> np.ndarray:
    """Return lengths of clips of 1 to 30 s at 75 frames per second."""
    return np.random.default_rng(seed).integers(75, 2251, sum(clips)).astype(np.int32)


@given(
    st.lists(st.integers(0, 400), min_size=3, max_size=12).filter(lambda x: sum(x) > 500),
    st.integers(0, 99),
    st.integers(0, 3),
)
@settings(max_examples=20)
def test_every_clip_once_per_epoch(clips: list[int], seed: int, window: int) -> None:
    order = LengthBucketedSampler(EpochSampler(clips, seed, window), [lengths_of(clips)], seed)
    seen = ids(order, np.arange(3 * order.epoch_size))
    for epoch in range(3):
        once = seen[epoch * order.epoch_size : (epoch + 1) * order.epoch_size]
        assert sorted(once) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
@settings(max_examples=20)
def test_position_alone_determines_clip(some: list[int]) -> None:
    clips = [200] * 30
    one, two = (LengthBucketedSampler(EpochSampler(clips, 3, 5), [lengths_of(clips)], 3) for _ in range(2))
    assert ids(one, np.array(some)) == [ids(two, np.array([position]))[0] for position in some]


def test_mixture_visits_each_source_once_per_epoch() -> None:
    sizes = {"a": [70] * 30, "b": [11] * 40}
    orders = {name: EpochSampler(clips, 1) for name, clips in sizes.items()}
    mixture = MixtureSampler(orders, {"a": 3, "b": 1}, 0)
    order = LengthBucketedSampler(mixture, [lengths_of(clips) for clips in sizes.values()], 0)
    seen = ids(order, np.arange(40_000))
    assert sorted(seen[: bucketing.BLOCK]) == sorted(ids(mixture, np.arange(bucketing.BLOCK)))
    for source, clips in enumerate(sizes.values()):
        own = [position for position in seen if position[0] == source]
        for start in range(0, len(own) - sum(clips), sum(clips)):
            assert len(set(own[start : start + sum(clips)])) == sum(clips)


@pytest.mark.parametrize("ranks", [1, 3, 1024])
@pytest.mark.parametrize("batch", [8, 16, 24, 64])
def test_padding_is_a_few_percent(batch: int, ranks: int) -> None:
    """Clips of 1 to 30 s, uniformly distributed: on any rank of any number of ranks, in any epoch."""
    clips = [500] * 100
    plain = EpochSampler(clips, 0, 10)
    order = LengthBucketedSampler(plain, [lengths_of(clips)], 0)
    shares = []
    for law in (plain, order):
        starts = 1_234_567 + np.arange(200) * ranks * batch + (ranks - 1) * batch
        locations = law((starts[:, None] + np.arange(batch)).ravel())
        shares.append(padding_fraction(order.lengths_of(locations).reshape(-1, batch)))
    assert 0.4 < shares[0] < 0.5 and shares[1] < 0.1
    assert order.padding_without > 0.4 and order.padding_with < 0.03


def test_short_clips_are_spread_over_the_epoch() -> None:
    clips = [500] * 100
    order = LengthBucketedSampler(EpochSampler(clips, 0), [lengths_of(clips)], 0)
    means = order.lengths_of(order(np.arange(15_360))).reshape(-1, 960).mean(1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.6 and means.std() > 300
    again = order.lengths_of(order(np.arange(15_360) + order.epoch_size)).reshape(-1, 960).mean(1)
    assert not np.allclose(means, again, atol=100)


def test_no_buckets_below_max_padding() -> None:
    clips = [100] * 10
    order = EpochSampler(clips, 0)
    assert bucket_by_length(order, [np.full(1000, 300, np.int32)], 0, max_padding=0.1) is order
    assert isinstance(bucket_by_length(order, [lengths_of(clips)], 0, max_padding=0.1), LengthBucketedSampler)
    assert bucket_by_length(order, [lengths_of(clips)], 0, max_padding=1) is order
    assert bucket_by_length(EpochSampler([3], 0), [np.array([1, 2, 99], np.int32)], 0, max_padding=0.99).epoch_size == 3


def test_batches_of_shards_have_similar_lengths(tmp_path: Path) -> None:
    split = ShardedDataset(write_cache(tmp_path / "c", [100] * 10, lengths=(4, 9, 30, 31)), "train")
    assert split.lengths().tolist() == [4, 9, 30, 31] * 250
    order = bucket_by_length(EpochSampler(split.clips_per_shard, 0), [split.lengths()], 0, max_padding=0.1)
    seen, padded, whole = [], 0, 0
    for batch in itertools.islice(ShardDataLoader([split], order, batch_size=10, num_threads=0).batches(), 100):
        assert batch.codes.shape[2] == batch.frames.max()
        assert batch.frames.tolist() == [(4, 9, 30, 31)[n % 4] for n in clip_numbers(batch)]
        seen += clip_numbers(batch)
        padded, whole = padded + batch.codes[:, 0].numel() - int(batch.frames.sum()), whole + batch.codes[:, 0].numel()
    assert sorted(seen) == list(range(1000)) and padded / whole < 0.1


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 40), st.integers(1, 5), st.sampled_from([0, 2]))
@settings(max_examples=15)
def test_resume_on_other_ranks_matches_unbroken_run(
    cache: Path, ranks: int, batch: int, stop: int, ranks_after: int, threads: int
) -> None:
    """With buckets: resumed on other ranks, each of 400 clips of 4 to 31 frames is read once per epoch."""
    split = ShardedDataset(cache, "train")

    def read(position: int, ranks: int, steps: int) -> list[int]:
        order = bucket_by_length(
            EpochSampler(split.clips_per_shard, 2, shuffle_shards=3), [split.lengths()], 2, max_padding=0.1
        )
        streams = [
            ShardDataLoader([split], order, batch_size=batch, rank=r, world_size=ranks, num_threads=threads)
            for r in range(ranks)
        ]
        runs = [list(itertools.islice(stream.batches(position), steps)) for stream in streams]
        return [n for step in zip(*runs, strict=True) for b in step for n in clip_numbers(b)]

    first = read(0, ranks, stop)
    rest = read(len(first), ranks_after, -(-max(1, 800 - len(first)) // (ranks_after * batch)))
    seen = first + rest
    assert sorted(seen[:400]) == list(range(400)) == sorted(seen[400:800])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache") / "c", [50] * 8, lengths=(4, 9, 30, 31))
