"""Clips of like length side by side, so that batches are not padded, with the law of the order untouched.

The places of an order are taken in blocks, sorted by length inside each, and cut into units that are shuffled:

    block    15,360 places: 16 units          an epoch's end (of any cache of a mixture) ends a part of it too
    unit     960 places of like length        960 divides by most sizes of a batch, so few lie in two units

Only places inside one block, of one epoch, change seats: every clip still comes once an epoch, any place is found
without the ones before it, and the place is the whole state, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.seeds import derive_keys, fold_key
from pipeline.data.sampler import (
    ClipLocations,
    EpochSampler,
    MixtureSampler,
    Sampler,
    permute_indices,
    unique_ints,
)

BLOCK, UNIT, MIN_SHARE_SAVED = 15_360, 960, 96
_KEPT = 4  # blocks in memory
_SAMPLED = 16  # clips in the batches that tell whether buckets pay: the same whatever the batches of a run


class LengthBucketedSampler:
    """An order whose neighbours are of like length. before: the share of padding without it."""

    def __init__(self, order: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int) -> None:
        """lengths: of each source, the frames of all its clips, shard after shard."""
        self.order, self.epoch, self.lookahead, self.seed = order, order.epoch, order.lookahead, seed
        self._lengths = np.concatenate(lengths)
        first = 0
        self._first: list[np.ndarray] = []  # of each source, where in lengths its shards begin
        for source in order.orders if isinstance(order, MixtureSampler) else [order]:
            ends = first + np.cumsum(source.clips)
            self._first.append(ends - source.clips)
            first = int(ends[-1])
        assert first == len(self._lengths)
        self._blocks: dict[int, ClipLocations] = {}
        self._sample = np.arange(max(1, min(self.epoch, BLOCK) // _SAMPLED) * _SAMPLED)
        self.padding_without = padding_fraction(self.lengths_of(order(self._sample)).reshape(-1, _SAMPLED))

    @property
    def padding_with(self) -> float:
        """The share of padding that is left."""
        return padding_fraction(self.lengths_of(self(self._sample)).reshape(-1, _SAMPLED))

    def __call__(self, places: np.ndarray) -> ClipLocations:
        """The clips at some places of the stream."""
        result = ClipLocations(*(np.empty_like(places) for _ in range(4)))
        blocks = places // BLOCK
        for number in unique_ints(blocks):
            here = blocks == number
            for mine, theirs in zip(
                vars(result).values(),
                vars(self._block(number).select(places[here] - number * BLOCK)).values(),
                strict=True,
            ):
                mine[here] = theirs
        return result

    def upcoming_shards(self, places: np.ndarray) -> list[tuple[int, int]]:
        """Source and shard of what is read at some places and soon after."""
        return self.order.upcoming_shards(places)

    def _block(self, number: int) -> ClipLocations:
        """A block's clips in their new order."""
        block = self._blocks.get(number)
        if block is None:
            places = np.arange(number * BLOCK, (number + 1) * BLOCK)
            found = self.order(places)
            part = _parts(found)
            ties = derive_keys(fold_key(self.seed, -4), places)
            seats = np.lexsort((ties, self.lengths_of(found), part))
            ends = np.append(np.flatnonzero(np.diff(part)) + 1, BLOCK).tolist()
            units = []
            for first, end in zip([0, *ends], ends, strict=False):
                size = min(
                    UNIT, max(MIN_SHARE_SAVED, (end - first) // (BLOCK // UNIT) // MIN_SHARE_SAVED * MIN_SHARE_SAVED)
                )
                cut = [seats[at : min(end, at + size)] for at in range(first, end, size)]
                turns = permute_indices(np.arange(len(cut)), len(cut), fold_key(self.seed, number, first, -5))
                units += [cut[turn] for turn in turns]
            kept = list(self._blocks.items())[1 - _KEPT :]
            block = found.select(np.concatenate(units))
            self._blocks = {**dict(kept), number: block}  # from which another thread may drop it at once
        return block

    def lengths_of(self, found: ClipLocations) -> np.ndarray:
        """The frames of clips: int64 [N]."""
        at = found.row.copy()
        for source, first in enumerate(self._first):
            here = found.source == source
            at[here] += first[found.shard[here]]
        return self._lengths[at]


def bucket_by_length(
    order: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int, most: float
) -> Sampler:
    """The order with clips of like length side by side, where more than a share `most` would be padding without."""
    buckets = LengthBucketedSampler(order, lengths, seed)
    return buckets if buckets.padding_without > most else order


def padding_fraction(lengths: np.ndarray) -> float:
    """The share of padded frames in batches of clips: lengths int [n, B]."""
    return 1 - float(lengths.sum() / max(1, lengths.shape[1] * lengths.max(1).sum()))


def _parts(found: ClipLocations) -> np.ndarray:
    """Numbers the parts of a row of places between which a source begins a new epoch."""
    begins = np.zeros(len(found.source), np.int64)
    for source in unique_ints(found.source):
        own = np.flatnonzero(found.source == source)
        begins[own[1:][np.diff(found.epoch[own]) > 0]] = 1
    return np.cumsum(begins)
