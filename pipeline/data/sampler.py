"""The order of training: a sampler maps each position of an endless stream to a clip, a function of (seed, position).

The stream is one epoch after another. Positions are counted from 0, and the number of positions consumed is the
complete state of the training data. An epoch visits every clip once:

    shards    shuffled into one line of clips, cut into `interleave` equal lanes
    lane      its shards are grouped into windows of `shuffle_shards`        (0: one window for all shards)
    window    its clips are shuffled together                                (a keyed permutation: nothing is stored)

With W equal shards per window, two neighbouring clips of a lane come from the same shard about once in W times. With
`shuffle_shards=0` the shuffle is global. The clip at any position is computed without the positions before it, in
memory proportional to the number of shards.

Lanes alternate every 16 positions. If world size x batch size is a multiple of 16 x lanes, a rank reads from its own
lanes only. Each machine of a cluster then needs only its part of the shards, and a step still mixes all lanes.

Letters: n clips, i positions.
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

INTERLEAVE_BLOCK = 16  # consecutive positions of one lane
_ROUNDS = 6  # of the permutation's Feistel network
_ODD = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class ClipLocations:
    """Where the clips of n stream positions are stored.

    Attributes:
        source: int64 [n], index of the dataset.
        shard: int64 [n], index of the shard in the dataset.
        row: int64 [n], index of the clip in the shard.
        epoch: int64 [n], number of complete passes over the dataset before this position.
    """

    source: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    epoch: np.ndarray

    def select(self, selection: np.ndarray) -> ClipLocations:
        """Return the locations that an index array or a mask selects."""
        return ClipLocations(self.source[selection], self.shard[selection], self.row[selection], self.epoch[selection])


class Sampler(Protocol):
    """Maps positions of the training stream to clips.

    Attributes:
        epoch_size: positions until every clip has come once.
        lookahead: positions covered by the shuffle windows that are read at one time.
    """

    epoch_size: int
    lookahead: int

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """Return the clips at stream positions [n]."""

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Return (source, shard) of what is read at these positions and soon after, nearest first."""


_ROUND_KEYS = [fold_key(r) for r in range(_ROUNDS)]


def permute_indices(indices: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """Apply a keyed permutation of range(size) to indices.

    A Feistel network over two digits, each about the square root of the size. Results outside the range are permuted
    again until they are inside (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        indices: int64 [n], each in range(size).
        sizes: size of the range, one for all or [n].
        keys: key of the permutation, one for all or [n].

    Returns:
        int64 [n], each in range(size).
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
    """Permute range(high * low): each digit in turn is shifted by a hash of the other."""
    left = x // low
    right = x - left * low
    for r in range(0, _ROUNDS, 2):
        left += _hash_below(right, keys, r, high)
        left -= high * (left >= high)
        right += _hash_below(left, keys, r + 1, low)
        right -= low * (right >= low)
    result: np.ndarray = left * low + right
    return result


def _hash_below(x: np.ndarray, keys: np.ndarray, number: int, size: np.ndarray) -> np.ndarray:
    """Return hashes in range(size), for sizes below 2**32."""
    h: np.ndarray = x * GOLDEN
    h += keys + _ROUND_KEYS[number]
    h ^= h >> np.uint64(32)
    h *= _ODD
    h >>= np.uint64(32)
    h *= size
    h >>= np.uint64(32)
    return h


@dataclass(frozen=True)
class _EpochLayout:
    """The shuffled line of clips of one epoch. Offsets count clips from the start of the line."""

    shards: np.ndarray  # in the order of the line
    starts: np.ndarray  # offset of each shard's first clip
    window_bounds: np.ndarray  # offset of each window's first clip, and of the end
    keys: np.ndarray  # uint64, permutation key of each window
    lane_bounds: np.ndarray  # offset of each lane's first clip, and of the end

    def shards_of(self, windows: np.ndarray) -> list[int]:
        """Return the shards of some windows, in their order on the line."""
        first = np.searchsorted(self.starts, self.window_bounds[windows], side="right") - 1
        last = np.searchsorted(self.starts, self.window_bounds[windows + 1], side="left")
        return [int(s) for a, b in zip(first, last, strict=True) for s in self.shards[a:b]]


class EpochSampler:
    """The endless stream over the shards of one dataset, each clip once per epoch."""

    def __init__(
        self, clips_per_shard: Sequence[int] | np.ndarray, seed: int, shuffle_shards: int = 0, interleave: int = 1
    ) -> None:
        """Prepare the stream; nothing is read.

        Args:
            clips_per_shard: number of clips of each shard.
            seed: of all permutations.
            shuffle_shards: shards per shuffle window; 0 shuffles over all shards.
            interleave: number of lanes that are read side by side.

        Raises:
            InputError: there are no clips.
        """
        self.clips_per_shard = np.asarray(clips_per_shard, np.int64)
        self.epoch_size = int(self.clips_per_shard.sum())
        if not self.epoch_size:
            raise InputError("there are no clips to train on: the shards of this split are empty")
        num_shards = len(self.clips_per_shard)
        self.seed, self.interleave = seed, interleave
        self.shuffle_shards = shuffle_shards if 0 < shuffle_shards < num_shards else num_shards
        filled = int(np.count_nonzero(self.clips_per_shard))
        self.lookahead: int = max(1, self.epoch_size * self.shuffle_shards * interleave // filled)
        self._layouts: dict[int, _EpochLayout] = {}

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """Return the clips at stream positions [n]."""
        epochs = positions // self.epoch_size
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for epoch in unique_ints(epochs):
            selected = epochs == epoch
            layout = self._layout(epoch)
            at, window = self._line_offsets(layout, positions[selected] - epoch * self.epoch_size)
            if (window == window[0]).all():  # scalars are faster than arrays
                window = window[0]
            first = layout.window_bounds[window]
            at = first + permute_indices(at - first, layout.window_bounds[window + 1] - first, layout.keys[window])
            rank = np.searchsorted(layout.starts, at, side="right") - 1
            shard[selected], row[selected] = layout.shards[rank], at - layout.starts[rank]
        return ClipLocations(np.zeros_like(positions), shard, row, epochs)

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Return (source, shard) of the windows at these positions, then of the next windows."""
        shards: dict[int, None] = {}
        for ahead in (0, self.lookahead // 2, self.lookahead):
            epochs = (positions + ahead) // self.epoch_size
            for epoch in unique_ints(epochs):
                layout = self._layout(epoch)
                offsets = (positions + ahead)[epochs == epoch] - epoch * self.epoch_size
                shards.update(dict.fromkeys(layout.shards_of(np.unique(self._line_offsets(layout, offsets)[1]))))
        return [(0, shard) for shard in shards]

    def _line_offsets(self, layout: _EpochLayout, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the offset on the line (before windows are shuffled) and the window of each position of an epoch."""
        if self.interleave > 1:
            block, inside = np.divmod(offsets, INTERLEAVE_BLOCK)
            lane, cycle = block % self.interleave, block // self.interleave
            offsets = layout.lane_bounds[lane] + cycle * INTERLEAVE_BLOCK + inside
        return offsets, np.searchsorted(layout.window_bounds, offsets, side="right") - 1

    def _layout(self, epoch: int) -> _EpochLayout:
        layout = self._layouts.get(epoch)
        if layout is None:
            filled = np.flatnonzero(self.clips_per_shard)
            shards = filled[np.argsort(derive_keys(fold_key(self.seed, epoch, -1), filled), kind="stable")]
            ends = np.cumsum(self.clips_per_shard[shards])
            starts = ends - self.clips_per_shard[shards]
            cycles, rest = divmod(self.epoch_size, INTERLEAVE_BLOCK * self.interleave)
            number = np.arange(self.interleave + 1)
            lanes = cycles * INTERLEAVE_BLOCK * number + np.minimum(rest, INTERLEAVE_BLOCK * number)
            windows = np.unique(np.concatenate([starts[:: self.shuffle_shards], lanes]))
            keys = derive_keys(fold_key(self.seed, epoch), np.arange(len(windows)))
            kept = list(self._layouts.items())[-2:]
            layout = _EpochLayout(shards, starts, windows, keys, lanes)
            self._layouts = {**dict(kept), epoch: layout}  # another thread may replace this dict at any time
        return layout


class MixtureSampler:
    """Several datasets in one stream, each with a weight and its own sampler, so that its clips come once per epoch.

    Positions are grouped into blocks of 1,000. Each block has every source in proportion to its weight, shuffled.
    Rounding errors are carried to the next block: after any number of blocks, a source deviates from its weight by at
    most half a clip per other source.
    """

    BLOCK = 1000

    def __init__(self, samplers: Mapping[str, EpochSampler], weights: Mapping[str, float], seed: int) -> None:
        """Mix the samplers.

        Args:
            samplers: one per dataset, by name.
            weights: relative number of clips of each dataset, by the same names.
            seed: of the shuffle within blocks.

        Raises:
            InputError: the weights do not name the samplers, or are not positive.
        """
        if set(weights) != set(samplers) or any(not 0 < w < math.inf for w in weights.values()):
            raise InputError(
                f"mixture_weights={dict(weights)}: give a positive number for each of {', '.join(samplers)}"
            )
        self.samplers, self.seed = list(samplers.values()), seed
        total = sum(weights.values())
        rest = [Fraction(weights[name]) for name in samplers]
        self._shares = [weight / sum(rest[i:]) for i, weight in enumerate(rest)]  # of what earlier sources leave
        # an epoch ends when the source with the fewest clips for its weight has been seen once
        self.epoch_size = int(min(sampler.epoch_size * total / weights[name] for name, sampler in samplers.items()))
        self.lookahead = int(min(sampler.lookahead * total / weights[name] for name, sampler in samplers.items()))

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """Return the clips at stream positions [n]."""
        source, own = self._assign_sources(positions)
        shard, row, epoch = (np.empty_like(positions) for _ in range(3))
        for s, sampler in enumerate(self.samplers):
            selected = source == s
            locations = sampler(own[selected])
            shard[selected], row[selected], epoch[selected] = locations.shard, locations.row, locations.epoch
        return ClipLocations(source, shard, row, epoch)

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Return (source, shard) of what is read at these positions and soon after."""
        source, own = self._assign_sources(positions)
        return [(s, n) for s, sampler in enumerate(self.samplers) for _, n in sampler.upcoming_shards(own[source == s])]

    def _assign_sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and the position in that source's own stream."""
        source, own = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // self.BLOCK
        for block in unique_ints(blocks):
            selected = blocks == block
            block_source, block_own = self._block_sources(block)
            inside = positions[selected] - block * self.BLOCK
            source[selected], own[selected] = block_source[inside], block_own[inside]
        return source, own

    def _block_sources(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position of a block, and its position in that source's stream: int64 [1000]."""
        before = self._positions_used(block)
        quota = self._positions_used(block + 1) - before
        sources = np.repeat(np.arange(len(self.samplers)), quota)
        sources = sources[permute_indices(np.arange(self.BLOCK), self.BLOCK, fold_key(self.seed, block, -2))]
        own = np.empty(self.BLOCK, np.int64)
        for s in range(len(self.samplers)):
            selected = sources == s
            own[selected] = before[s] + np.arange(selected.sum())
        return sources, own

    def _positions_used(self, blocks: int) -> np.ndarray:
        """Return how many positions of the first blocks belong to each source: int64 [sources].

        Each source in turn gets its rounded share of the positions that earlier sources leave. Shares are exact
        fractions, so one more position gives exactly one source one more.
        """
        left, used = blocks * self.BLOCK, []
        for share in self._shares:
            used.append(math.floor(share * left + Fraction(1, 2)))
            left -= used[-1]
        return np.array(used)


def unique_ints(x: np.ndarray) -> list[int]:
    """Return the distinct integers of an array, ascending."""
    if not len(x):
        return []
    low, high = int(x.min()), int(x.max())
    return [low] if low == high else np.unique(x).tolist()
