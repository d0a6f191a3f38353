"""The order of training: which clip stands at each place of an endless stream. A pure function of (seed, place).

The stream is one epoch after another; its places are counted from 0, and the count of places taken is the whole state
of training data. An epoch visits every clip once, in an order of its own:

    shards    shuffled into one line of clips, cut into `lanes` equal parts (1: one part)
    lane      its shards taken `window` at a time              (window 0: all of them at once)
    window    its clips shuffled as one                        (a keyed permutation: nothing is stored)

So with a window of W equal shards, two neighbours of a lane come from one shard about once in W times; with window 0
the shuffle is global. Any place is found without the ones before it, in memory of a number a shard, whatever the count
of clips.

Lanes take turns of 16 places. Where ranks x clips a batch is a multiple of 16 x lanes, a rank stays in its own lanes:
then each machine of a cluster needs its share of the shards, and a step still mixes the windows of all lanes.

Letters: n clips, i places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from pipeline.common.errors import InputError
from pipeline.common.seeds import GOLDEN, derive_keys, fold_key

INTERLEAVE_BLOCK = 16  # places that a lane has in a row
_ROUNDS = 6  # of the permutation
_ODD = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class ClipLocations:
    """What stands at places of the stream: int64 [n] each.

    source: which cache; shard, row: the clip's shard, and its number in it; epoch: how often the cache has been seen.
    """

    source: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    epoch: np.ndarray

    def select(self, selection: np.ndarray) -> ClipLocations:
        """Some of them, by index or mask."""
        return ClipLocations(self.source[selection], self.shard[selection], self.row[selection], self.epoch[selection])


class Sampler(Protocol):
    """What says which clip stands where. epoch: places until all clips have come once; span: those of a window."""

    epoch_size: int
    lookahead: int

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """The clips at some places of the stream."""

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Source and shard of what is read at some places and soon after, the nearest first."""


_ROUND_KEYS = [fold_key(r) for r in range(_ROUNDS)]


def permute_indices(indices: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """A keyed permutation of range(size) at some places [n], each with a size and a key of its own, or one for all.

    A Feistel network over two digits of about the square root of the size; the few places that fall outside the range
    walk on until they are inside (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). int64 [n].
    """
    sizes, keys = np.asarray(sizes).astype(np.uint64), np.asarray(keys, np.uint64)
    high = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    network = (high, (sizes + high - np.uint64(1)) // high, keys)
    result = _feistel(indices.astype(np.uint64), *network)
    out = np.flatnonzero(result >= sizes)
    while len(out):
        result[out] = _feistel(result[out], *(x if x.ndim == 0 else x[out] for x in network))
        out = out[result[out] >= (sizes if sizes.ndim == 0 else sizes[out])]
    return result.astype(np.int64)


def _feistel(x: np.ndarray, high: np.ndarray, low: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A permutation of range(high * low): each digit in turn is moved on by a hash of the other."""
    left = x // low
    right = x - left * low
    for r in range(0, _ROUNDS, 2):
        left += _hash_below(right, keys, r, high)
        left -= high * (left >= high)
        right += _hash_below(left, keys, r + 1, low)
        right -= low * (right >= low)
    return left * low + right


def _hash_below(x: np.ndarray, keys: np.ndarray, number: int, size: np.ndarray) -> np.ndarray:
    """A hash in range(size), for sizes below 2**32."""
    h = x * GOLDEN
    h += keys + _ROUND_KEYS[number]
    h ^= h >> np.uint64(32)
    h *= _ODD
    h >>= np.uint64(32)
    h *= size
    h >>= np.uint64(32)
    return h


@dataclass(frozen=True)
class _EpochLayout:
    """One epoch: its line of shards, at which clip of the line each begins, and the windows cut from it."""

    shards: np.ndarray
    starts: np.ndarray
    window_bounds: np.ndarray  # where each begins on the line, and where the last ends
    keys: np.ndarray  # one a window, uint64
    lane_bounds: np.ndarray  # where each begins on the line, and where the last ends

    def shards_of(self, windows: np.ndarray) -> list[int]:
        """The shards of some windows, in their order on the line."""
        first = np.searchsorted(self.starts, self.window_bounds[windows], side="right") - 1
        last = np.searchsorted(self.starts, self.window_bounds[windows + 1], side="left")
        return [int(s) for a, b in zip(first, last, strict=True) for s in self.shards[a:b]]


class EpochSampler:
    """The endless stream over the shards of one cache."""

    def __init__(
        self, clips_per_shard: Sequence[int] | np.ndarray, seed: int, shuffle_shards: int = 0, interleave: int = 1
    ) -> None:
        """clips: how many each shard holds. Raises InputError where there are none."""
        self.clips_per_shard = np.asarray(clips_per_shard, np.int64)
        self.epoch_size = int(self.clips_per_shard.sum())  # places in an epoch
        if not self.epoch_size:
            raise InputError("there are no clips to train on: the shards of this split are empty")
        self.seed, self.interleave = seed, interleave
        self.shuffle_shards = (
            shuffle_shards if 0 < shuffle_shards < len(self.clips_per_shard) else len(self.clips_per_shard)
        )
        self.lookahead: int = max(
            1, self.epoch_size * self.shuffle_shards * interleave // int(np.count_nonzero(self.clips_per_shard))
        )
        self._layouts: dict[int, _EpochLayout] = {}

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """The clips at some places of the stream."""
        epochs = positions // self.epoch_size
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for epoch in unique_ints(epochs):
            here = epochs == epoch
            walk = self._layout(epoch)
            at, window = self._line_offsets(walk, positions[here] - epoch * self.epoch_size)
            if (window == window[0]).all():  # numbers for arrays are quicker
                window = window[0]
            first = walk.window_bounds[window]
            at = first + permute_indices(at - first, walk.window_bounds[window + 1] - first, walk.keys[window])
            found = np.searchsorted(walk.starts, at, side="right") - 1
            shard[here], row[here] = walk.shards[found], at - walk.starts[found]
        return ClipLocations(np.zeros_like(positions), shard, row, epochs)

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Source and shard of what is read at some places and soon after: of their windows, then of the next ones."""
        found: dict[int, None] = {}
        for ahead in (0, self.lookahead // 2, self.lookahead):
            epochs = (positions + ahead) // self.epoch_size
            for epoch in unique_ints(epochs):
                walk = self._layout(epoch)
                offsets = (positions + ahead)[epochs == epoch] - epoch * self.epoch_size
                found.update(dict.fromkeys(walk.shards_of(np.unique(self._line_offsets(walk, offsets)[1]))))
        return [(0, shard) for shard in found]

    def _line_offsets(self, walk: _EpochLayout, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the places of an epoch lie on its line before windows are shuffled, and in which window."""
        if self.interleave > 1:
            turn, inside = np.divmod(offsets, INTERLEAVE_BLOCK)
            offsets = walk.lane_bounds[turn % self.interleave] + turn // self.interleave * INTERLEAVE_BLOCK + inside
        return offsets, np.searchsorted(walk.window_bounds, offsets, side="right") - 1

    def _layout(self, epoch: int) -> _EpochLayout:
        walk = self._layouts.get(epoch)
        if walk is None:
            filled = np.flatnonzero(self.clips_per_shard)
            shards = filled[np.argsort(derive_keys(fold_key(self.seed, epoch, -1), filled), kind="stable")]
            ends = np.cumsum(self.clips_per_shard[shards])
            starts = ends - self.clips_per_shard[shards]
            whole, rest = divmod(self.epoch_size, INTERLEAVE_BLOCK * self.interleave)
            number = np.arange(self.interleave + 1)
            lanes = whole * INTERLEAVE_BLOCK * number + np.minimum(rest, INTERLEAVE_BLOCK * number)
            windows = np.unique(np.concatenate([starts[:: self.shuffle_shards], lanes]))
            keys = derive_keys(fold_key(self.seed, epoch), np.arange(len(windows)))
            kept = list(self._layouts.items())[-2:]
            walk = _EpochLayout(shards, starts, windows, keys, lanes)
            self._layouts = {**dict(kept), epoch: walk}  # from which another thread may drop it at once
        return walk


class MixtureSampler:
    """Several caches in one stream, each with a weight, each visited in its own order: its own clips once an epoch.

    Places come in blocks of 1,000 that hold every source in its share, shuffled within; what a share leaves over is
    carried to the next block, so that after any number of blocks no source is off its weight by more than half a clip
    for each of the others.
    """

    BLOCK = 1000

    def __init__(self, samplers: Mapping[str, EpochSampler], weights: Mapping[str, float], seed: int) -> None:
        """Raises InputError where the weights do not name the sources, or are not positive."""
        if set(weights) != set(samplers) or any(not 0 < w < math.inf for w in weights.values()):
            raise InputError(
                f"mixture_weights={dict(weights)}: give a positive number for each of {', '.join(samplers)}"
            )
        self.samplers, self.seed = list(samplers.values()), seed
        total = sum(weights.values())
        rest = [Fraction(weights[name]) for name in samplers]
        self._shares = [weight / sum(rest[i:]) for i, weight in enumerate(rest)]  # of what those before it leave
        # an epoch ends when the source with the fewest clips for its weight has been seen once
        self.epoch_size = int(min(order.epoch_size * total / weights[name] for name, order in samplers.items()))
        self.lookahead = int(min(order.lookahead * total / weights[name] for name, order in samplers.items()))

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """The clips at some places of the stream."""
        source, own = self._assign_sources(positions)
        shard, row, epoch = (np.empty_like(positions) for _ in range(3))
        for s, order in enumerate(self.samplers):
            here = source == s
            found = order(own[here])
            shard[here], row[here], epoch[here] = found.shard, found.row, found.epoch
        return ClipLocations(source, shard, row, epoch)

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Source and shard of all that is read around some places, as of an `Order`."""
        source, own = self._assign_sources(positions)
        return [(s, n) for s, order in enumerate(self.samplers) for _, n in order.upcoming_shards(own[source == s])]

    def _assign_sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each place, its source and that source's own place."""
        source, own = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // self.BLOCK
        for block in unique_ints(blocks):
            here = blocks == block
            drawn, count = self._block_sources(block)
            inside = positions[here] - block * self.BLOCK
            source[here], own[here] = drawn[inside], count[inside]
        return source, own

    def _block_sources(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block, its source and that source's own place: int64 [1000] each."""
        before = self._positions_used(block)
        quota = self._positions_used(block + 1) - before
        sources = np.repeat(np.arange(len(self.samplers)), quota)
        sources = sources[permute_indices(np.arange(self.BLOCK), self.BLOCK, fold_key(self.seed, block, -2))]
        rank = np.empty(self.BLOCK, np.int64)
        for s in range(len(self.samplers)):
            here = sources == s
            rank[here] = before[s] + np.arange(here.sum())
        return sources, rank

    def _positions_used(self, blocks: int) -> np.ndarray:
        """How many places each source has in the first blocks: int64 [sources].

        Each in turn takes its share, rounded, of the places that those before it leave. Shares are exact, so with one
        place more, one source has one more and none has less.
        """
        left, taken = blocks * self.BLOCK, []
        for share in self._shares:
            taken.append(math.floor(share * left + Fraction(1, 2)))
            left -= taken[-1]
        return np.array(taken)


def unique_ints(x: np.ndarray) -> list[int]:
    """The different numbers in an array, from least to greatest."""
    if not len(x):
        return []
    low, high = int(x.min()), int(x.max())
    return [low] if low == high else np.unique(x).tolist()
