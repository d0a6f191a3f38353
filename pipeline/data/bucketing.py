"""Length bucketing: batches hold clips of similar length, and the guarantees of the sampler still hold.

Positions of a sampler are grouped into blocks, sorted by length inside each block, and cut into units. The units of a
block are shuffled:

    block    15,360 positions: 16 units          also ends where an epoch of any dataset of a mixture ends
    unit     960 positions of similar length     960 is a multiple of most batch sizes, so few batches span two units

Positions move only inside one block and one epoch. Every clip still comes once per epoch, any position is computed
without the ones before it, and the position is the complete state, for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.seeds import derive_keys, fold_key
from pipeline.data.sampler import ClipLocations, EpochSampler, MixtureSampler, Sampler, permute_indices, unique_ints

BLOCK, UNIT, MIN_UNIT = 15_360, 960, 96  # positions
_CACHED_BLOCKS = 4
_PROBE_BATCH = 16  # batch size at which padding is measured, whatever the batch size of the run


class LengthBucketedSampler:
    """A sampler whose neighbouring positions have clips of similar length.

    Attributes:
        padding_without: fraction of padded frames without bucketing.
        padding_with: fraction of padded frames with bucketing.
    """

    def __init__(self, sampler: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int) -> None:
        """Wrap a sampler.

        Args:
            sampler: the order of training.
            lengths: frames of every clip of each dataset, [clips] in the order of its shards.
            seed: of the shuffle of units and of ties.
        """
        self.sampler, self.epoch_size, self.lookahead, self.seed = sampler, sampler.epoch_size, sampler.lookahead, seed
        self._lengths = np.concatenate(lengths)
        first = 0
        self._first_clips: list[np.ndarray] = []  # per source: index in `_lengths` of each shard's first clip
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
        """Fraction of padded frames with bucketing."""
        return padding_fraction(self.lengths_of(self(self._probe)).reshape(-1, _PROBE_BATCH))

    def __call__(self, positions: np.ndarray) -> ClipLocations:
        """Return the clips at stream positions [n]."""
        result = ClipLocations(*(np.empty_like(positions) for _ in range(4)))
        blocks = positions // BLOCK
        for number in unique_ints(blocks):
            selected = blocks == number
            locations = self._block(number).select(positions[selected] - number * BLOCK)
            for target, values in zip(vars(result).values(), vars(locations).values(), strict=True):
                target[selected] = values
        return result

    def upcoming_shards(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Return (source, shard) of what is read at these positions and soon after."""
        return self.sampler.upcoming_shards(positions)

    def _block(self, number: int) -> ClipLocations:
        """Return the clips of a block in bucketed order."""
        block = self._blocks.get(number)
        if block is None:
            positions = np.arange(number * BLOCK, (number + 1) * BLOCK)
            locations = self.sampler(positions)
            part = _epoch_parts(locations)
            ties = derive_keys(fold_key(self.seed, -4), positions)
            by_length = np.lexsort((ties, self.lengths_of(locations), part))
            ends = np.append(np.flatnonzero(np.diff(part)) + 1, BLOCK).tolist()
            units = []
            for first, end in zip([0, *ends], ends, strict=False):
                size = min(UNIT, max(MIN_UNIT, (end - first) // (BLOCK // UNIT) // MIN_UNIT * MIN_UNIT))
                cut = [by_length[at : min(end, at + size)] for at in range(first, end, size)]
                order = permute_indices(np.arange(len(cut)), len(cut), fold_key(self.seed, number, first, -5))
                units += [cut[i] for i in order]
            kept = list(self._blocks.items())[1 - _CACHED_BLOCKS :]
            block = locations.select(np.concatenate(units))
            self._blocks = {**dict(kept), number: block}  # another thread may replace this dict at any time
        return block

    def lengths_of(self, locations: ClipLocations) -> np.ndarray:
        """Return the frames of clips: int64 [n]."""
        index = locations.row.copy()
        for source, first in enumerate(self._first_clips):
            selected = locations.source == source
            index[selected] += first[locations.shard[selected]]
        lengths: np.ndarray = self._lengths[index]
        return lengths


def bucket_by_length(
    sampler: EpochSampler | MixtureSampler, lengths: Sequence[np.ndarray], seed: int, max_padding: float
) -> Sampler:
    """Return the sampler with length bucketing if more than `max_padding` of its frames would be padding without it.

    Args:
        sampler: the order of training.
        lengths: frames of every clip of each dataset, [clips] in the order of its shards.
        seed: of the shuffle of buckets.
        max_padding: largest accepted fraction of padded frames; 1 never buckets.
    """
    buckets = LengthBucketedSampler(sampler, lengths, seed)
    return buckets if buckets.padding_without > max_padding else sampler


def padding_fraction(lengths: np.ndarray) -> float:
    """Return the fraction of padded frames in batches of clips with these lengths: int [n, B]."""
    return 1 - float(lengths.sum() / max(1, lengths.shape[1] * lengths.max(1).sum()))


def _epoch_parts(locations: ClipLocations) -> np.ndarray:
    """Number the parts of a row of positions; a part ends where any source begins a new epoch."""
    begins = np.zeros(len(locations.source), np.int64)
    for source in unique_ints(locations.source):
        own = np.flatnonzero(locations.source == source)
        begins[own[1:][np.diff(locations.epoch[own]) > 0]] = 1
    return np.cumsum(begins)
