"""The order of training: which clip stands at each place of an endless stream. A pure function of (seed, place).

The stream is one epoch after another; its places are counted from 0, and the count of places taken is the whole state
of training data. An epoch visits every clip once, in an order of its own:

    shards    shuffled, then taken `window` at a time          (window 0: all of them at once)
    window    its clips shuffled as one                        (a keyed permutation: nothing is stored)

So with a window of W equal shards, two neighbours come from one shard about once in W times; with window 0 the shuffle
is global. Any place is found without the ones before it, in memory of a number a shard, whatever the count of clips.

Letters: n clips, i places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError

_ROUNDS = 6


@dataclass(frozen=True)
class Places:
    """Where places of the stream lie: int64 [n] each; row is the clip's number in its shard."""

    source: np.ndarray
    shard: np.ndarray
    row: np.ndarray


def mixed(x: np.ndarray) -> np.ndarray:
    """A bijective mix of uint64 (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """One 64-bit key from several numbers: seed, epoch, window..."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mixed(state + np.uint64(0x9E3779B97F4A7C15) + np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return state[0]


def permuted(places: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """A keyed permutation of range(size) at some places, each with a size and a key of its own: int64, same shape.

    A Feistel network over the next even number of bits; what falls outside the range walks on until it is inside
    (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    sizes = np.broadcast_to(np.asarray(sizes, np.uint64), places.shape)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), places.shape)
    half = np.maximum(1, (np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64))).astype(np.uint64) + 1) // 2)
    result = places.astype(np.uint64)
    out = np.ones(places.shape, bool)
    while out.any():
        result[out] = _feistel(result[out], half[out], keys[out])
        out &= result >= sizes
    return result.astype(np.int64)


def _feistel(x: np.ndarray, half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for r in range(_ROUNDS):
        left, right = right, left ^ (mixed(keys + right * np.uint64(0x9E3779B97F4A7C15) + np.uint64(r)) & mask)
    return (left << half) | right


class Order:
    """The endless stream over the shards of one cache."""

    def __init__(self, clips: Sequence[int] | np.ndarray, seed: int, window: int = 0) -> None:
        """clips: how many each shard holds. Raises InputError where there are none."""
        self.clips = np.asarray(clips, np.int64)
        self.epoch = int(self.clips.sum())  # places in an epoch
        if not self.epoch:
            raise InputError("there are no clips to train on: the shards of this split are empty")
        self.seed = seed
        self.window = window if 0 < window < len(self.clips) else len(self.clips)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, places: np.ndarray) -> Places:
        """The clips at some places of the stream."""
        shard, row = np.empty_like(places), np.empty_like(places)
        epochs = places // self.epoch
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shard[here], row[here] = self._within(int(epoch), places[here] - epoch * self.epoch)
        return Places(np.zeros_like(places), shard, row)

    def _within(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards, starts = self._shuffled(epoch)
        first = starts[:: self.window][: -(-len(shards) // self.window)]  # where each window starts
        last = np.append(first[1:], self.epoch)
        window = np.searchsorted(first, offsets, side="right") - 1
        keys = np.array([key(self.seed, epoch, w) for w in range(len(first))], np.uint64)[window]
        sizes = (last - first)[window]
        at = first[window] + permuted(offsets - first[window], sizes, keys)
        found = np.searchsorted(starts, at, side="right") - 1
        return shards[found], at - starts[found]

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards that hold anything in the epoch's order, and at which offset each starts."""
        if epoch not in self._epochs:
            filled = np.flatnonzero(self.clips)
            order = filled[np.argsort(mixed(filled.astype(np.uint64) + key(self.seed, epoch, -1)), kind="stable")]
            starts = np.cumsum(self.clips[order]) - self.clips[order]
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: (order, starts)}
        return self._epochs[epoch]


class Mixture:
    """Several caches in one stream, each with a weight, each visited in its own order: its own clips once an epoch.

    Places come in blocks of 1,000 that hold every source in its share, shuffled within; what a share leaves over is
    carried to the next block, so that after any number of blocks no source is off its weight by a whole clip.
    """

    BLOCK = 1000

    def __init__(self, orders: Mapping[str, Order], weights: Mapping[str, float], seed: int) -> None:
        """Raises InputError where the weights do not name the sources, or are not positive."""
        if set(weights) != set(orders) or any(not w > 0 for w in weights.values()):
            raise InputError(f"weights={dict(weights)}: give a positive number for each of {', '.join(orders)}")
        self.orders, self.seed = list(orders.values()), seed
        total = sum(weights.values())
        self.shares = np.cumsum([weights[name] / total for name in orders])
        self.shares[-1] = 1.0
        # an epoch ends when the source with the fewest clips for its weight has been seen once
        self.epoch = int(min(order.epoch * total / weights[name] for name, order in orders.items()))

    def __call__(self, places: np.ndarray) -> Places:
        """The clips at some places of the stream."""
        source, own = np.empty_like(places), np.empty_like(places)
        blocks = places // self.BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            drawn, count = self._block(int(block))
            inside = places[here] - block * self.BLOCK
            source[here], own[here] = drawn[inside], count[inside]
        shard, row = np.empty_like(places), np.empty_like(places)
        for s, order in enumerate(self.orders):
            here = source == s
            found = order(own[here])
            shard[here], row[here] = found.shard, found.row
        return Places(source, shard, row)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block, its source and that source's own place: int64 [1000] each."""
        before = self._taken(block)
        quota = self._taken(block + 1) - before
        sources = np.repeat(np.arange(len(self.orders)), quota)
        sources = sources[permuted(np.arange(self.BLOCK), self.BLOCK, key(self.seed, block, -2))]
        rank = np.empty(self.BLOCK, np.int64)
        for s in range(len(self.orders)):
            here = sources == s
            rank[here] = before[s] + np.arange(here.sum())
        return sources, rank

    def _taken(self, blocks: int) -> np.ndarray:
        """How many places each source has in the first blocks: cumulated shares rounded, so that they add up."""
        edges = np.floor(self.shares * (blocks * self.BLOCK) + 0.5).astype(np.int64)
        return np.diff(edges, prepend=0)
