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

BLOCK, UNIT, MIN_UNIT = 15_360, 960, 96
_CACHED_BLOCKS = 4  # blocks in memory
_PROBE_BATCH = 16  # clips in the batches that tell whether buckets pay: the same whatever the batches of a run


class LengthBucketedSampler:
    """An order whose neighbours are of like length. before: the share of padding without it."""

    def __init__(self, sampler: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int) -> None:
        """lengths: of each source, the frames of all its clips, shard after shard."""
        self.sampler, self.epoch_size, self.lookahead, self.seed = sampler, sampler.epoch_size, sampler.lookahead, seed
        self._lengths = np.concatenate(lengths)
        first = 0
        self._first_clips: list[np.ndarray] = []  # of each source, where in lengths its shards begin
        for source in sampler.samplers if isinstance(sampler, MixtureSampler) else [sampler]:
            ends = first + np.cumsum(source.clips_per_shard)
            self._first_clips.append(ends - source.clips_per_shard)
            first = int(ends[-1])
        assert first == len(self._lengths)
        self._blocks: dict[int, ClipLocations] = {}
        self._probe = np.arange(max(1, min(self.epoch_size, BLOCK) // _PROBE_BATCH) * _PROBE_BATCH)
        self.padding_without = padding_fraction(self.lengths_of(sampler(self._probe)).reshape(-1, _PROBE_BATCH))

    @property
    def padding_with(self) -> float:
        """The share of padding that is left."""
        return padding_fraction(self.lengths_of(self(self._probe)).reshape(-1, _PROBE_BATCH))

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """The clips at some places of the stream."""
        result = ClipLocations(*(np.empty_like(positions) for _ in range(4)))
        blocks = positions // BLOCK
        for number in unique_ints(blocks):
            here = blocks == number
            for mine, theirs in zip(
                vars(result).values(),
                vars(self._block(number).select(positions[here] - number * BLOCK)).values(),
                strict=True,
            ):
                mine[here] = theirs
        return result

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Source and shard of what is read at some places and soon after."""
        return self.sampler.upcoming_shards(positions)

    def _block(self, number: int) -> ClipLocations:
        """A block's clips in their new order."""
        block = self._blocks.get(number)
        if block is None:
            places = np.arange(number * BLOCK, (number + 1) * BLOCK)
            found = self.sampler(places)
            part = _epoch_parts(found)
            ties = derive_keys(fold_key(self.seed, -4), places)
            seats = np.lexsort((ties, self.lengths_of(found), part))
            ends = np.append(np.flatnonzero(np.diff(part)) + 1, BLOCK).tolist()
            units = []
            for first, end in zip([0, *ends], ends, strict=False):
                size = min(UNIT, max(MIN_UNIT, (end - first) // (BLOCK // UNIT) // MIN_UNIT * MIN_UNIT))
                cut = [seats[at : min(end, at + size)] for at in range(first, end, size)]
                turns = permute_indices(np.arange(len(cut)), len(cut), fold_key(self.seed, number, first, -5))
                units += [cut[turn] for turn in turns]
            kept = list(self._blocks.items())[1 - _CACHED_BLOCKS :]
            block = found.select(np.concatenate(units))
            self._blocks = {**dict(kept), number: block}  # from which another thread may drop it at once
        return block

    def lengths_of(self, locations: ClipLocations) -> np.ndarray:
        """The frames of clips: int64 [N]."""
        at = locations.row.copy()
        for source, first in enumerate(self._first_clips):
            here = locations.source == source
            at[here] += first[locations.shard[here]]
        return self._lengths[at]


def bucket_by_length(
    sampler: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int, max_padding: float
) -> Sampler:
    """The order with clips of like length side by side, where more than a share `most` would be padding without."""
    buckets = LengthBucketedSampler(sampler, lengths, seed)
    return buckets if buckets.padding_without > max_padding else sampler


def padding_fraction(lengths: np.ndarray) -> float:
    """The share of padded frames in batches of clips: lengths int [n, B]."""
    return 1 - float(lengths.sum() / max(1, lengths.shape[1] * lengths.max(1).sum()))


def _epoch_parts(locations: ClipLocations) -> np.ndarray:
    """Numbers the parts of a row of places between which a source begins a new epoch."""
    begins = np.zeros(len(locations.source), np.int64)
    for source in unique_ints(locations.source):
        own = np.flatnonzero(locations.source == source)
        begins[own[1:][np.diff(locations.epoch[own]) > 0]] = 1
    return np.cumsum(begins)
