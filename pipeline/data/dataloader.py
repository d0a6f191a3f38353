"""The data loader: batches from shards for any rank, at memory speed, from any position of the training stream.

    position   0 ............. m ............. 2m ............. 3m ............. 4m     m: batch size; 2 ranks
               rank 0 batch 0   rank 1 batch 0   rank 0 batch 1   rank 1 batch 1

The sampler (`pipeline.data.sampler`) decides which clip is at a position, the same on all ranks; a rank reads its own
positions only. Each batch carries the position that the run reaches when all ranks have consumed theirs. This number
is saved with the model, and it is all that a resume needs, on any number of ranks or threads.

A clip of a lost shard is replaced by another clip, chosen by the position alone: batches stay full and ranks in step.

Letters: B clips, K codebooks, T frames, P prompt dimensions, n batches.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.seeds import fold_key
from pipeline.data.dataset import ShardedDataset
from pipeline.data.mapped_shard import ALIGN, MAX_ITEM_BYTES, MappedShard, array_at, memory_as_array
from pipeline.data.sampler import ClipLocations, Sampler, permute_indices
from pipeline.data.shard import CODES_DTYPE

_MAX_PLANNED_CLIPS = 4096  # clips that are located together
_FIRST_PLAN_BATCHES = 8  # fewer in the first plan, so that the first batch comes soon
_BATCHES_PER_TASK = 4  # batches that a thread reads together
_REPLACEMENT_STRIDE = 10_007  # positions between a lost clip and the next candidate that replaces it
_MAX_REPLACEMENTS = 100  # candidates


@dataclass(slots=True)
class Batch:
    """Clips of one rank.

    Attributes:
        codes: int16 [B, K, T], padded with 0.
        frames: int64 [B], true number of frames of each clip.
        prompts_fp16: float16 [B, P], prompt vectors as stored.
        position: position of the stream after this batch on all ranks; saved to resume.
        clip_positions: int64 [B], position of each clip.
    """

    codes: Tensor
    frames: Tensor
    prompts_fp16: Tensor
    position: int
    clip_positions: np.ndarray

    @property
    def prompts(self) -> Tensor:
        """Prompt vectors: float32 [B, P]."""
        return self.prompts_fp16.float()

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Copy to a device, asynchronously where possible.

        Returns:
            codes: int16 [B, K, T].
            frames: int64 [B].
            prompts: float32 [B, P].
        """
        if device.type == "cpu":
            return self.codes, self.frames, self.prompts
        codes, frames, prompts = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.codes, self.frames, self.prompts_fp16)
        )
        return codes, frames, prompts.float()


class ShardDataLoader:
    """Endless batches of one rank, in the order of a sampler.

    dataset = ShardedDataset("shards/nsynth", "train")
    loader = ShardDataLoader([dataset], EpochSampler(dataset.clips_per_shard, seed=0), batch_size=16)
    for batch in loader.batches():
        batch.codes  # int16 [B, K, T]
    """

    def __init__(
        self,
        datasets: Sequence[ShardedDataset],
        sampler: Sampler,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        max_frames: int | None = None,
        seed: int = 0,
        num_threads: int = 1,
    ) -> None:
        """Prepare the loader; nothing is read yet.

        Args:
            datasets: the sources of the sampler, in its order.
            sampler: the order of training.
            batch_size: clips per batch of one rank.
            rank: this process, below `world_size`.
            world_size: number of ranks that share the stream.
            max_frames: longer clips are cropped to it, at a start that their position decides.
            seed: of the crops.
            num_threads: threads that read ahead; 0 reads in the caller's thread.

        Raises:
            InputError: the batch size or the rank is out of range.
        """
        if not batch_size > 0 or not 0 <= rank < world_size:
            raise InputError(f"a batch of {batch_size} clips for rank {rank} of {world_size} cannot be read")
        self.datasets, self.sampler = list(datasets), sampler
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.max_frames, self.seed, self.num_threads = max_frames, seed, num_threads

    def clip_keys(self, positions: np.ndarray) -> list[str]:
        """Return the keys of the clips at stream positions [n]."""
        locations, _, _ = self._locate_clips(positions)
        columns = (locations.source.tolist(), locations.shard.tolist(), locations.row.tolist())
        return [self.datasets[s].clip_key(n, r) for s, n, r in zip(*columns, strict=True)]

    def batches(self, position: int = 0) -> Iterator[Batch]:
        """Yield batches from a position of the stream on. Threads read ahead; the order does not depend on them."""
        try:
            yield from self._iter_prefetched(position) if self.num_threads else self._iter_batches(position)
        finally:
            for dataset in self.datasets:
                dataset.cancel_prefetch()

    def _iter_batches(self, position: int) -> Iterator[Batch]:
        plan = self._plan(position, _FIRST_PLAN_BATCHES)
        while True:
            yield from (plan.batch(i) for i in range(len(plan)))
            plan = self._plan(plan.end, 2 * len(plan))

    def _iter_prefetched(self, position: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="stream") as pool:
            next_plan = pool.submit(self._plan, position, _FIRST_PLAN_BATCHES)
            reads: collections.deque[Future[list[Batch]]] = collections.deque()
            try:
                while True:
                    plan = next_plan.result()
                    for first in range(0, len(plan), _BATCHES_PER_TASK):
                        if len(reads) > self.num_threads + 1:
                            yield from reads.popleft().result()
                        reads.append(pool.submit(plan.batches, first, first + _BATCHES_PER_TASK))
                    next_plan = pool.submit(self._plan, plan.end, 2 * len(plan))
            finally:
                next_plan.cancel()
                for future in reads:
                    future.cancel()

    def _plan(self, position: int, num_batches: int) -> _BatchPlan:
        """Locate the clips of at most `num_batches` batches; of half a lookahead at most, since shards stay open."""
        stride = self.batch_size * self.world_size
        n = max(1, min(num_batches, _MAX_PLANNED_CLIPS // self.batch_size, self.sampler.lookahead // (2 * stride)))
        starts = position + stride * np.arange(n)
        positions = (starts[:, None] + self.rank * self.batch_size + np.arange(self.batch_size)).ravel()
        self._prefetch_shards(positions)
        locations, addresses, shards = self._locate_clips(positions)
        offsets = None
        if self.max_frames is not None and (addresses[:, 1] > self.max_frames).any():
            num_starts = np.maximum(0, addresses[:, 1] - self.max_frames) + 1
            offsets = permute_indices(positions % num_starts, num_starts, fold_key(self.seed, -3))
        return _BatchPlan(
            self.datasets, locations.source, addresses, shards, positions, self.batch_size, self.max_frames, offsets,
            starts + stride,
        )  # fmt: skip

    def _prefetch_shards(self, positions: np.ndarray) -> None:
        """Start downloads of remote shards before they are needed."""
        if any(dataset.shard_cache for dataset in self.datasets):
            upcoming = self.sampler.upcoming_shards(positions)
            for source, dataset in enumerate(self.datasets):
                dataset.prefetch([n for s, n in upcoming if s == source], self.rank)

    def _locate_clips(self, positions: np.ndarray) -> tuple[ClipLocations, np.ndarray, list[MappedShard]]:
        """Return the clips at positions [n], with replacements for lost ones; their addresses [n, 3]; their shards."""
        locations = self.sampler(positions)
        addresses, shards, lost = _clip_addresses(self.datasets, locations)
        for attempt in range(1, _MAX_REPLACEMENTS):
            if not len(lost):
                return locations, addresses, shards
            replacements = self.sampler(positions[lost] + attempt * _REPLACEMENT_STRIDE)
            for target, values in zip(vars(locations).values(), vars(replacements).values(), strict=True):
                target[lost] = values
            addresses[lost], more, still_lost = _clip_addresses(self.datasets, replacements)
            shards, lost = shards + more, lost[still_lost]
        raise InputError(f"{len(lost)} clips of lost shards cannot be replaced: no readable clip was found")


class _BatchPlan:
    """The addresses of n consecutive batches, which are copied out of shards on demand."""

    def __init__(
        self,
        datasets: list[ShardedDataset],
        source: np.ndarray,
        addresses: np.ndarray,
        shards: list[MappedShard],
        positions: np.ndarray,
        batch_size: int,
        max_frames: int | None,
        offsets: np.ndarray | None,
        next_positions: np.ndarray,
    ) -> None:
        """Prepare n batches; the last may be smaller. All arrays are int64.

        Args:
            datasets: the sources.
            source: [clips], index of each clip's dataset.
            addresses: [clips, 3], as in `MappedShard.addresses`.
            shards: kept mapped as long as the plan exists.
            positions: [clips], stream positions.
            batch_size: clips per batch.
            max_frames: longer clips are cropped.
            offsets: [clips], first frame of cropped clips; None for 0.
            next_positions: [n], position of the stream after each batch on all ranks.
        """
        self.shards, self.batch_size, self.next_positions = shards, batch_size, next_positions.tolist()
        self.K, self.P = datasets[0].codebooks, datasets[0].manifest.prompt_dim
        self.datasets, self.source, self.max_code = datasets, source, datasets[0].manifest.codec["codebook_size"] - 1
        self.stored_codebooks = np.array([dataset.manifest.codebooks for dataset in datasets])[source]
        self.codes, self.stored_frames, self.prompts = addresses[:, 0], addresses[:, 1], addresses[:, 2]
        self.frames = self.stored_frames if max_frames is None else np.minimum(self.stored_frames, max_frames)
        self.offsets = np.zeros_like(self.frames) if offsets is None else offsets
        firsts = np.arange(0, len(positions), batch_size)
        shortest, self.longest = (f.reduceat(self.frames, firsts).tolist() for f in (np.minimum, np.maximum))
        # equal lengths, nothing cropped: the first K codebooks are the first K * T numbers of each clip
        cropped = np.logical_or.reduceat(self.frames < self.stored_frames, firsts).tolist()
        fits = MAX_ITEM_BYTES // (self.K * CODES_DTYPE.itemsize)
        self.is_uniform = [a == b <= fits and not c for a, b, c in zip(shortest, self.longest, cropped, strict=True)]
        columns = (self.codes // ALIGN - 1, self.prompts // ALIGN - 1, self.frames, positions)
        self.columns = list(zip(*(_split_chunks(x, batch_size) for x in columns), strict=True))

    def __len__(self) -> int:
        return len(self.longest)

    @property
    def end(self) -> int:
        """Position of the stream after all batches."""
        return self.next_positions[-1]

    def batches(self, first: int, last: int) -> list[Batch]:
        """Return batches `first` to `last`, excluded, as far as they exist."""
        return [self.batch(i) for i in range(first, min(last, len(self)))]

    def batch(self, i: int) -> Batch:
        """Copy batch number i out of its shards."""
        K, P, T = self.K, self.P, self.longest[i]
        code_items, prompt_items, frames, positions = self.columns[i]
        clips = slice(i * self.batch_size, (i + 1) * self.batch_size)
        if self.is_uniform[i]:
            codes = memory_as_array(2 * K * T)[code_items].view(np.int16).reshape(len(code_items), K, T)
        else:
            codes = self._padded_codes(clips, T)
        if codes.size and int(codes.view(np.uint16).max()) > self.max_code:  # a GPU would only report an assertion
            paths = {self.datasets[n].store.display_path() for n in self.source[clips].tolist()}
            raise InputError(
                f"a clip in {' or '.join(sorted(paths))} has codes above {self.max_code}: its shard is damaged; "
                "`python -m pipeline.shards verify` names the shard"
            )
        prompts = memory_as_array(2 * P)[prompt_items].view(np.float16).reshape(-1, P)
        codes_t, frames_t, prompts_t = (torch.from_numpy(x) for x in (codes, frames, prompts))
        return Batch(codes_t, frames_t, prompts_t, self.next_positions[i], positions)

    def _padded_codes(self, clips: slice, T: int) -> np.ndarray:
        """Return the codes of clips of different lengths: int16 [B, K, T]."""
        columns = (self.codes, self.stored_codebooks, self.stored_frames, self.offsets, self.frames)
        rows = list(zip(*(x[clips].tolist() for x in columns), strict=True))
        codes = np.zeros((len(rows), self.K, T), np.int16)
        for i, (address, books, stored, start, frames) in enumerate(rows):
            codes[i, :, :frames] = array_at(address, (books, stored), CODES_DTYPE)[: self.K, start : start + frames]
        return codes


def iter_once(
    dataset: ShardedDataset, batch_size: int, rank: int = 0, world_size: int = 1, max_frames: int | None = None
) -> Iterator[Batch]:
    """Yield every clip of a split exactly once over all ranks, in the order on disk.

    Ranks may get different numbers of batches (their numbers of clips differ by at most one): do not run a collective
    operation per batch. Clips of lost shards are skipped.

    Args:
        dataset: the split.
        batch_size: clips per batch of one rank.
        rank: this process, below `world_size`.
        world_size: number of ranks.
        max_frames: longer clips are cropped to their first frames.
    """
    ends = np.cumsum(dataset.clips_per_shard)
    own = np.arange(rank, len(dataset), world_size)
    planned = -(-_MAX_PLANNED_CLIPS // batch_size) * batch_size
    for first in range(0, len(own), planned):
        positions = own[first : first + planned]
        shard = np.searchsorted(ends, positions, side="right")
        row = positions - (ends - dataset.clips_per_shard)[shard]
        zeros = np.zeros_like(positions)
        addresses, shards, lost = _clip_addresses([dataset], ClipLocations(zeros, shard, row, zeros))
        addresses, positions = np.delete(addresses, lost, 0), np.delete(positions, lost)
        if len(positions):
            after = np.append(positions[batch_size::batch_size], positions[-1] + 1)
            source = np.zeros_like(positions)
            plan = _BatchPlan([dataset], source, addresses, shards, positions, batch_size, max_frames, None, after)
            yield from (plan.batch(i) for i in range(len(plan)))


def _split_chunks(x: np.ndarray, size: int) -> list[np.ndarray]:
    """Split an array into chunks of a size, the last one possibly smaller; faster than np.split."""
    whole = len(x) // size * size
    return [*x[:whole].reshape(-1, size), *([x[whole:]] if whole < len(x) else [])]


def _clip_addresses(
    datasets: Sequence[ShardedDataset], locations: ClipLocations
) -> tuple[np.ndarray, list[MappedShard], np.ndarray]:
    """Open the shards of n clips.

    Returns:
        addresses: int64 [n, 3], as in `MappedShard.addresses`.
        shards: the shards that the addresses point into.
        lost: indices of clips whose shards are lost.
    """
    addresses, shards, lost = np.zeros((len(locations.row), 3), np.int64), [], []
    joint = locations.source * (1 + locations.shard.max(initial=0)) + locations.shard
    joint = joint.astype(np.uint16) if joint.max(initial=0) < 2**16 else joint  # sorts several times faster
    order = np.argsort(joint, kind="stable")
    for clips in np.split(order, np.flatnonzero(np.diff(joint[order])) + 1) if len(order) else []:
        shard = datasets[int(locations.source[clips[0]])].get_shard(int(locations.shard[clips[0]]))
        if shard is None:
            lost.append(clips)
        else:
            addresses[clips] = shard.addresses[locations.row[clips]]
            shards.append(shard)
    return addresses, shards, np.concatenate([np.zeros(0, np.int64), *lost])
