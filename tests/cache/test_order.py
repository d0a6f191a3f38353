"""The law of the order: every clip once an epoch, found from its place alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.order import Mixture, Order, key, permuted
from pipeline.errors import InputError

shards = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**32)


def ids(order: Order | Mixture, places: np.ndarray) -> list[tuple[int, int, int]]:
    found = order(places)
    return list(zip(found.source.tolist(), found.shard.tolist(), found.row.tolist(), strict=True))


@given(st.integers(1, 3000), seeds)
def test_a_keyed_permutation_permutes(n: int, seed: int) -> None:
    assert sorted(permuted(np.arange(n), n, key(seed))) == list(range(n))


@given(shards, seeds, st.integers(0, 4), st.integers(0, 3))
def test_every_clip_once_an_epoch(clips: list[int], seed: int, window: int, epoch: int) -> None:
    order = Order(clips, seed, window)
    seen = ids(order, np.arange(order.epoch) + epoch * order.epoch)
    assert sorted(seen) == [(0, s, r) for s, n in enumerate(clips) for r in range(n)]


@given(shards, seeds, st.integers(0, 4), st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_a_place_needs_none_of_those_before_it(clips: list[int], seed: int, window: int, some: list[int]) -> None:
    whole = ids(Order(clips, seed, window), np.arange(501))
    assert ids(Order(clips, seed, window), np.array(some)) == [whole[i] for i in some]


def test_epochs_and_seeds_differ() -> None:
    order, places = Order([50] * 4, seed=1), np.arange(200)
    first = ids(order, places)
    assert first != ids(order, places + 200) and first != ids(Order([50] * 4, seed=2), places)


def test_the_shuffle_is_global_or_of_its_window() -> None:
    """Of equal shards, neighbours share one about once in `window` times; window 0 is all of them."""
    clips = [100] * 64
    for window, expected in ((0, 64), (1, 1), (8, 8), (32, 32)):
        shard = Order(clips, 0, window)(np.arange(6400)).shard
        assert np.mean(shard[1:] == shard[:-1]) == pytest.approx(1 / expected, rel=0.2)


def test_a_global_shuffle_keeps_nothing_of_the_order_on_disk() -> None:
    found = Order([1000] * 20, 3)(np.arange(20_000))
    place_on_disk = found.shard * 1000 + found.row
    assert abs(np.corrcoef(place_on_disk, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(place_on_disk[1:], place_on_disk[:-1])[0, 1]) < 0.03


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=4), seeds)
@settings(max_examples=30)
def test_a_mixture_keeps_its_weights_and_each_sources_own_law(weights: list[float], seed: int) -> None:
    orders = {f"c{i}": Order([7 + i, 20], seed + i) for i in range(len(weights))}
    named = {f"c{i}": w for i, w in enumerate(weights)}
    mixture = Mixture(orders, named, seed)
    seen = ids(mixture, np.arange(3000))
    assert seen[1234:1300] == ids(Mixture(orders, named, seed), np.arange(1234, 1300))
    for s, order in enumerate(orders.values()):
        own = [place for place in seen if place[0] == s]
        assert len(own) == pytest.approx(3000 * weights[s] / sum(weights), abs=1)
        for start in range(0, len(own) - order.epoch, order.epoch):
            assert len(set(own[start : start + order.epoch])) == order.epoch


def test_weights_that_do_not_name_the_sources_are_refused() -> None:
    orders = {"nsynth": Order([3], 0), "jamendo": Order([3], 0)}
    for weights in ({"nsynth": 1.0}, {"nsynth": 1.0, "jamendo": 0.0}, {"nsynth": 1.0, "jamendoo": 1.0}):
        with pytest.raises(InputError, match="nsynth, jamendo"):
            Mixture(orders, weights, 0)


def test_no_clips_is_refused() -> None:
    with pytest.raises(InputError, match="no clips"):
        Order([0, 0], 0)


def test_ten_million_clips_for_1024_ranks() -> None:
    """20,000 shards, a window or a global shuffle: complete, disjoint, balanced to one clip."""
    clips = np.full(20_000, 500)
    clips[::7] += 3
    clips[1::7] -= 3
    n, ranks = int(clips.sum()), 1024
    order, seen = Order(clips, 5), np.zeros(int(clips.sum()), bool)
    starts = np.cumsum(clips) - clips
    share = [len(range(rank, n, ranks)) for rank in (0, ranks - 1)]
    assert share[0] - share[1] <= 1
    for rank in range(0, ranks, 64):  # 16 of the ranks, 64 neighbours each
        places = (np.arange(0, n, ranks)[:, None] + np.arange(rank, rank + 64)).ravel()
        places = places[places < n]
        found = order(places)
        at = starts[found.shard] + found.row
        assert not seen[at].any()
        seen[at] = True
    assert seen.all()
