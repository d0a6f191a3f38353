"""The sampler: every clip once per epoch, at a position that alone determines the clip."""

import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.common.seeds import fold_key
from pipeline.data.sampler import ClipLocations, EpochSampler, MixtureSampler, permute_indices

settings.register_profile("unhurried")
settings.load_profile("unhurried")
shards = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**32)


def ids(order: EpochSampler | MixtureSampler, positions: np.ndarray) -> list[tuple[int, int, int]]:
    locations = order(positions)
    return list(zip(locations.source.tolist(), locations.shard.tolist(), locations.row.tolist(), strict=True))


@given(st.integers(1, 3000), seeds)
def test_permutation_is_bijective(n: int, seed: int) -> None:
    assert sorted(permute_indices(np.arange(n), n, fold_key(seed))) == list(range(n))


@given(shards, seeds, st.integers(0, 4), st.integers(0, 3))
def test_every_clip_once_per_epoch(clips: list[int], seed: int, window: int, epoch: int) -> None:
    order = EpochSampler(clips, seed, window)
    seen = ids(order, np.arange(order.epoch_size) + epoch * order.epoch_size)
    assert sorted(seen) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


@given(shards, seeds, st.integers(0, 4), st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_position_alone_determines_clip(clips: list[int], seed: int, window: int, some: list[int]) -> None:
    whole = ids(EpochSampler(clips, seed, window), np.arange(501))
    assert ids(EpochSampler(clips, seed, window), np.array(some)) == [whole[i] for i in some]


def test_epochs_and_seeds_have_different_orders() -> None:
    order, positions = EpochSampler([50] * 4, seed=1), np.arange(200)
    first = ids(order, positions)
    assert first != ids(order, positions + 200) and first != ids(EpochSampler([50] * 4, seed=2), positions)


def test_shuffle_is_global_or_within_window() -> None:
    """With equal shards, neighbours are from the same shard about once in `window` times; window 0 has all shards."""
    clips = [100] * 64
    for window, expected in ((0, 64), (1, 1), (8, 8), (32, 32)):
        shard = EpochSampler(clips, 0, window)(np.arange(6400)).shard
        assert np.mean(shard[1:] == shard[:-1]) == pytest.approx(1 / expected, rel=0.2)


def test_global_shuffle_is_uncorrelated_with_disk() -> None:
    locations = EpochSampler([1000] * 20, 3)(np.arange(20_000))
    index_on_disk = locations.shard * 1000 + locations.row
    assert abs(np.corrcoef(index_on_disk, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(index_on_disk[1:], index_on_disk[:-1])[0, 1]) < 0.03


class Counted(EpochSampler):
    """A sampler that returns its positions as rows."""

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        none = np.zeros_like(positions)
        return ClipLocations(none, none, positions, none)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=6), st.integers(0, 10**9))
@settings(max_examples=50)
@example([290_000.0, 300.0, 1_300_000.0], 12)
@example([1.0, 2.0**-27, 2.0**-27, 1e-300], 2**27 // 1000)
def test_mixture_keeps_weights_at_any_position(weights: list[float], block: int) -> None:
    """Each source consumes its own positions one by one, in proportion to its weight, however small that is."""
    orders = {f"c{i}": Counted([9], 0) for i in range(len(weights))}
    mixture = MixtureSampler(orders, dict(zip(orders, weights, strict=True)), 0)
    locations = mixture(np.arange(block * 1000, (block + 3) * 1000))
    off = Fraction(max(1, len(weights) - 1), 2)
    for s, weight in enumerate(weights):
        own, share = locations.row[locations.source == s], Fraction(weight) / sum(map(Fraction, weights))
        assert (np.diff(own) == 1).all() and abs(len(own) - 3000 * share) <= 2 * off
        if len(own):
            assert abs(int(own[0]) - 1000 * block * share) <= off


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=4), seeds)
@settings(max_examples=30)
def test_mixture_visits_each_source_once_per_epoch(weights: list[float], seed: int) -> None:
    orders = {f"c{i}": EpochSampler([7 + i, 20], seed + i) for i in range(len(weights))}
    named = {f"c{i}": w for i, w in enumerate(weights)}
    mixture = MixtureSampler(orders, named, seed)
    seen = ids(mixture, np.arange(3000))
    assert seen[1234:1300] == ids(MixtureSampler(orders, named, seed), np.arange(1234, 1300))
    for s, order in enumerate(orders.values()):
        own = [position for position in seen if position[0] == s]
        for start in range(0, len(own) - order.epoch_size, order.epoch_size):
            assert len(set(own[start : start + order.epoch_size])) == order.epoch_size


def test_weights_must_name_the_sources() -> None:
    orders = {"nsynth": EpochSampler([3], 0), "jamendo": EpochSampler([3], 0)}
    for weights in (
        {"nsynth": 1.0},
        {"nsynth": 1, "jamendo": 0},
        {"nsynth": 1, "jamendo": np.inf},
        {"nsynth": 1, "x": 1},
    ):
        with pytest.raises(InputError, match="nsynth, jamendo"):
            MixtureSampler(orders, weights, 0)


def test_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="no clips"):
        EpochSampler([0, 0], 0)


@given(shards, seeds, st.integers(0, 3), st.integers(1, 5))
def test_lanes_visit_every_clip_once_per_epoch(clips: list[int], seed: int, window: int, lanes: int) -> None:
    order = EpochSampler(clips, seed, window, lanes)
    for epoch in range(2):
        seen = ids(order, np.arange(order.epoch_size) + epoch * order.epoch_size)
        assert sorted(seen) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


def test_ranks_in_lanes_read_part_of_the_shards() -> None:
    """If ranks x batch size is a multiple of 16 x lanes; every clip is still read once over all ranks."""
    lanes, ranks, m = 8, 16, 8
    order, steps = EpochSampler([100] * 64, 0, shuffle_shards=2, interleave=lanes), 50
    read = [
        {s for t in range(steps) for s in order(np.arange(m) + (t * ranks + rank) * m).shard.tolist()}
        for rank in range(ranks)
    ]
    assert max(map(len, read)) <= 64 // lanes + 1 and set.union(*read) == set(range(64))


@given(st.integers(0, 5000), st.sampled_from([1, 2]), st.integers(0, 3))
def test_upcoming_shards_cover_next_windows(position: int, lanes: int, seed: int) -> None:
    """All shards of the windows of some positions, then of the next windows, also across the end of an epoch."""
    order = EpochSampler([64] * 24, seed, shuffle_shards=4, interleave=lanes)
    upcoming = [shard for _, shard in order.upcoming_shards(np.arange(position, position + 16 * lanes))]
    assert (
        set(order(np.arange(position, position + 256)).shard.tolist()) <= set(upcoming) and len(upcoming) <= 12 * lanes
    )
    assert set(order(np.arange(position, position + 16)).shard.tolist()) <= set(
        upcoming[: 8 * lanes]
    )  # the nearest first


def test_upcoming_shards_of_mixture_cover_all_sources() -> None:
    orders = {"a": EpochSampler([50] * 24, 0, shuffle_shards=4), "b": EpochSampler([50] * 12, 1, shuffle_shards=2)}
    mixture = MixtureSampler(orders, {"a": 3, "b": 1}, 0)
    for position in (0, 900, 3500):
        locations = mixture(np.arange(position, position + 64))
        near = set(zip(locations.source.tolist(), locations.shard.tolist(), strict=True))
        assert near <= set(mixture.upcoming_shards(np.arange(position, position + 64)))
    assert len(mixture.upcoming_shards(np.arange(64))) <= 12


CLIPS = np.full(20_000, 500)
CLIPS[::7] += 3
CLIPS[1::7] -= 3


@pytest.mark.parametrize(("window", "lanes"), [(0, 1), (256, 1), (16, 64)])
def test_ten_million_clips_for_1024_ranks(window: int, lanes: int) -> None:
    """20,000 shards: every clip is read once, by one rank; ranks differ by at most one clip."""
    n, ranks = int(CLIPS.sum()), 1024
    order, starts = EpochSampler(CLIPS, 5, window, lanes), np.cumsum(CLIPS) - CLIPS
    seen, taken = np.zeros(n, np.int8), np.zeros(ranks, np.int64)
    for first in range(0, n, 64 * ranks):  # 64 batches of a clip on each rank
        positions = np.arange(first, min(n, first + 64 * ranks))
        locations = order(positions)
        np.add.at(seen, starts[locations.shard] + locations.row, 1)
        taken += np.bincount(positions % ranks, minlength=ranks)
    assert (seen == 1).all() and taken.max() - taken.min() <= 1


def test_lookup_is_fast_for_one_of_1024_ranks() -> None:
    """256 batches of 16 in a later epoch of 10 million clips, in milliseconds and megabytes."""
    tracemalloc.start()
    try:
        began = time.process_time()
        order = EpochSampler(CLIPS, 5, shuffle_shards=256)
        positions = (7 * order.epoch_size + np.arange(256)[:, None] * 16 * 1024 + 77 * 16 + np.arange(16)).ravel()
        assert len(set(ids(order, positions))) == len(positions)
        order.upcoming_shards(positions)
        assert time.process_time() - began < 1 and tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
