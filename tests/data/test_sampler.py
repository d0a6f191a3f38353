"""The law of the order: every clip once an epoch, found from its place alone."""

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


def ids(order: EpochSampler | MixtureSampler, places: np.ndarray) -> list[tuple[int, int, int]]:
    found = order(places)
    return list(zip(found.source.tolist(), found.shard.tolist(), found.row.tolist(), strict=True))


@given(st.integers(1, 3000), seeds)
def test_a_keyed_permutation_permutes(n: int, seed: int) -> None:
    assert sorted(permute_indices(np.arange(n), n, fold_key(seed))) == list(range(n))


@given(shards, seeds, st.integers(0, 4), st.integers(0, 3))
def test_every_clip_once_an_epoch(clips: list[int], seed: int, window: int, epoch: int) -> None:
    order = EpochSampler(clips, seed, window)
    seen = ids(order, np.arange(order.epoch_size) + epoch * order.epoch_size)
    assert sorted(seen) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


@given(shards, seeds, st.integers(0, 4), st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_a_place_needs_none_of_those_before_it(clips: list[int], seed: int, window: int, some: list[int]) -> None:
    whole = ids(EpochSampler(clips, seed, window), np.arange(501))
    assert ids(EpochSampler(clips, seed, window), np.array(some)) == [whole[i] for i in some]


def test_epochs_and_seeds_differ() -> None:
    order, places = EpochSampler([50] * 4, seed=1), np.arange(200)
    first = ids(order, places)
    assert first != ids(order, places + 200) and first != ids(EpochSampler([50] * 4, seed=2), places)


def test_the_shuffle_is_global_or_of_its_window() -> None:
    """Of equal shards, neighbours share one about once in `window` times; window 0 is all of them."""
    clips = [100] * 64
    for window, expected in ((0, 64), (1, 1), (8, 8), (32, 32)):
        shard = EpochSampler(clips, 0, window)(np.arange(6400)).shard
        assert np.mean(shard[1:] == shard[:-1]) == pytest.approx(1 / expected, rel=0.2)


def test_a_global_shuffle_keeps_nothing_of_the_order_on_disk() -> None:
    found = EpochSampler([1000] * 20, 3)(np.arange(20_000))
    place_on_disk = found.shard * 1000 + found.row
    assert abs(np.corrcoef(place_on_disk, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(place_on_disk[1:], place_on_disk[:-1])[0, 1]) < 0.03


class Counted(EpochSampler):
    """An order that gives its own places, as rows."""

    def __call__(self, places: np.ndarray) -> ClipLocations:
        none = np.zeros_like(places)
        return ClipLocations(none, none, places, none)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=6), st.integers(0, 10**9))
@settings(max_examples=50)
@example([290_000.0, 300.0, 1_300_000.0], 12)
@example([1.0, 2.0**-27, 2.0**-27, 1e-300], 2**27 // 1000)
def test_a_mixture_keeps_its_weights_at_any_place(weights: list[float], block: int) -> None:
    """However small a source is beside others: it goes through its own places one by one, and these are its share."""
    orders = {f"c{i}": Counted([9], 0) for i in range(len(weights))}
    mixture = MixtureSampler(orders, dict(zip(orders, weights, strict=True)), 0)
    found = mixture(np.arange(block * 1000, (block + 3) * 1000))
    off = Fraction(max(1, len(weights) - 1), 2)
    for s, weight in enumerate(weights):
        own, share = found.row[found.source == s], Fraction(weight) / sum(map(Fraction, weights))
        assert (np.diff(own) == 1).all() and abs(len(own) - 3000 * share) <= 2 * off
        if len(own):
            assert abs(int(own[0]) - 1000 * block * share) <= off


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=4), seeds)
@settings(max_examples=30)
def test_a_mixture_keeps_its_weights_and_each_sources_own_law(weights: list[float], seed: int) -> None:
    orders = {f"c{i}": EpochSampler([7 + i, 20], seed + i) for i in range(len(weights))}
    named = {f"c{i}": w for i, w in enumerate(weights)}
    mixture = MixtureSampler(orders, named, seed)
    seen = ids(mixture, np.arange(3000))
    assert seen[1234:1300] == ids(MixtureSampler(orders, named, seed), np.arange(1234, 1300))
    for s, order in enumerate(orders.values()):
        own = [place for place in seen if place[0] == s]
        for start in range(0, len(own) - order.epoch_size, order.epoch_size):
            assert len(set(own[start : start + order.epoch_size])) == order.epoch_size


def test_weights_that_do_not_name_the_sources_are_refused() -> None:
    orders = {"nsynth": EpochSampler([3], 0), "jamendo": EpochSampler([3], 0)}
    for weights in (
        {"nsynth": 1.0},
        {"nsynth": 1, "jamendo": 0},
        {"nsynth": 1, "jamendo": np.inf},
        {"nsynth": 1, "x": 1},
    ):
        with pytest.raises(InputError, match="nsynth, jamendo"):
            MixtureSampler(orders, weights, 0)


def test_no_clips_is_refused() -> None:
    with pytest.raises(InputError, match="no clips"):
        EpochSampler([0, 0], 0)


@given(shards, seeds, st.integers(0, 3), st.integers(1, 5))
def test_lanes_keep_the_law(clips: list[int], seed: int, window: int, lanes: int) -> None:
    order = EpochSampler(clips, seed, window, lanes)
    for epoch in range(2):
        seen = ids(order, np.arange(order.epoch_size) + epoch * order.epoch_size)
        assert sorted(seen) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


def test_in_lanes_a_rank_reads_its_share_of_the_shards() -> None:
    """Where ranks x clips a batch is a multiple of 16 x lanes, and still every clip once over all of them."""
    lanes, ranks, m = 8, 16, 8
    order, steps = EpochSampler([100] * 64, 0, shuffle_shards=2, interleave=lanes), 50
    read = [
        {s for t in range(steps) for s in order(np.arange(m) + (t * ranks + rank) * m).shard.tolist()}
        for rank in range(ranks)
    ]
    assert max(map(len, read)) <= 64 // lanes + 1 and set.union(*read) == set(range(64))


@given(st.integers(0, 5000), st.sampled_from([1, 2]), st.integers(0, 3))
def test_what_is_coming_is_known_ahead(place: int, lanes: int, seed: int) -> None:
    """All shards of the windows that places lie in, then of the next ones, over the end of an epoch too."""
    order = EpochSampler([64] * 24, seed, shuffle_shards=4, interleave=lanes)
    coming = [shard for _, shard in order.upcoming_shards(np.arange(place, place + 16 * lanes))]
    assert set(order(np.arange(place, place + 256)).shard.tolist()) <= set(coming) and len(coming) <= 12 * lanes
    assert set(order(np.arange(place, place + 16)).shard.tolist()) <= set(coming[: 8 * lanes])  # the nearest first


def test_what_is_coming_in_a_mixture_is_of_all_its_sources() -> None:
    orders = {"a": EpochSampler([50] * 24, 0, shuffle_shards=4), "b": EpochSampler([50] * 12, 1, shuffle_shards=2)}
    mixture = MixtureSampler(orders, {"a": 3, "b": 1}, 0)
    for place in (0, 900, 3500):
        found = mixture(np.arange(place, place + 64))
        near = set(zip(found.source.tolist(), found.shard.tolist(), strict=True))
        assert near <= set(mixture.upcoming_shards(np.arange(place, place + 64)))
    assert len(mixture.upcoming_shards(np.arange(64))) <= 12


CLIPS = np.full(20_000, 500)
CLIPS[::7] += 3
CLIPS[1::7] -= 3


@pytest.mark.parametrize(("window", "lanes"), [(0, 1), (256, 1), (16, 64)])
def test_ten_million_clips_for_1024_ranks(window: int, lanes: int) -> None:
    """20,000 shards: every clip is read once, by one rank; no rank reads more than a clip more than another."""
    n, ranks = int(CLIPS.sum()), 1024
    order, starts = EpochSampler(CLIPS, 5, window, lanes), np.cumsum(CLIPS) - CLIPS
    seen, taken = np.zeros(n, np.int8), np.zeros(ranks, np.int64)
    for first in range(0, n, 64 * ranks):  # 64 batches of a clip on each rank
        places = np.arange(first, min(n, first + 64 * ranks))
        found = order(places)
        np.add.at(seen, starts[found.shard] + found.row, 1)
        taken += np.bincount(places % ranks, minlength=ranks)
    assert (seen == 1).all() and taken.max() - taken.min() <= 1


def test_one_of_1024_ranks_finds_its_clips_in_milliseconds_and_megabytes() -> None:
    """256 batches of 16 anywhere in a later epoch of 10 million clips."""
    tracemalloc.start()
    try:
        began = time.process_time()
        order = EpochSampler(CLIPS, 5, shuffle_shards=256)
        places = (7 * order.epoch_size + np.arange(256)[:, None] * 16 * 1024 + 77 * 16 + np.arange(16)).ravel()
        assert len(set(ids(order, places))) == len(places)
        order.upcoming_shards(places)
        assert time.process_time() - began < 1 and tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
