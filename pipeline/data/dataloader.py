"""Shards read back as batches, over ranks and threads: exact, at memory speed, from any place of the stream.

    place    0 ............ m ........... 2m ........... 3m ........... 4m      m: clips of a rank's batch; 2 ranks
             rank 0 batch 0   rank 1 batch 0  rank 0 batch 1  rank 1 batch 1

Which clip stands at a place is the order's to say (`pipeline.data.sampler`), on all ranks alike; a rank only cuts its
own places out. A batch knows the place that the run has reached when all ranks have taken theirs: that number is saved
with the model, and is all that a resume needs, on any number of ranks or threads.

A clip whose shard is lost gives its place to another, which the place alone decides: batches stay full, ranks in step.

Letters: B clips, K codebooks, T frames, P prompt width, n batches.
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
from pipeline.data.dataset import ALIGN, MAX_ITEM_BYTES, MappedShard, ShardedDataset, array_at, memory_as_array
from pipeline.data.sampler import ClipLocations, Sampler, permute_indices
from pipeline.data.shard import CODES_DTYPE

_MAX_PLANNED_CLIPS = 4096  # clips that are looked up in one go, at most
_FIRST_PLAN_BATCHES = 8  # batches that are looked up in the first go, so that it comes soon
_BATCHES_PER_TASK = 4  # batches that a thread reads in one go
_REPLACEMENT_STRIDE, _MAX_REPLACEMENTS = (
    10_007,
    100,
)  # places from a lost clip to the one that stands in for it, and how many are tried


@dataclass(slots=True)
class Batch:
    """Clips of one rank.

    codes: int16 [B, K, T], 0 where padded; frames: int64 [B], the real ones; half: float16 [B, P], the prompts;
    place: the place of the stream after this batch on all ranks; clips: the places of these clips, int64 [B].
    """

    codes: Tensor
    frames: Tensor
    prompts_fp16: Tensor
    position: int
    clip_positions: np.ndarray

    @property
    def prompts(self) -> Tensor:
        """The prompts: float32 [B, P]."""
        return self.prompts_fp16.float()

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K, T], frames [B], prompts [B, D] (float32) on a device, copied without waiting where possible."""
        if device.type == "cpu":
            return self.codes, self.frames, self.prompts
        codes, frames, half = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.codes, self.frames, self.prompts_fp16)
        )
        return codes, frames, half.float()


@dataclass(frozen=True)
class LostClips:
    """What could not be read so far: clips, and the names of the shards that held them."""

    count: int
    shards: list[str]


class ShardDataLoader:
    """Batches of one rank's clips, endlessly, in the order of training."""

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
        """batch: clips a rank; frames: clips longer than this are cropped, at a start that their place decides."""
        if not batch_size > 0 or not 0 <= rank < world_size:
            raise InputError(f"a batch of {batch_size} clips for rank {rank} of {world_size} cannot be read")
        self.datasets, self.sampler, self.batch_size, self.rank, self.world_size = (
            list(datasets),
            sampler,
            batch_size,
            rank,
            world_size,
        )
        self.max_frames, self.seed, self.num_threads = max_frames, seed, num_threads

    @property
    def lost_clips(self) -> LostClips:
        """What this rank could not read so far."""
        shards = [
            split.store.display_path(split.shards[n].name) for split in self.datasets for n in list(split.lost_shards)
        ]
        return LostClips(sum(split.num_lost_clips() for split in self.datasets), shards)

    def clip_keys(self, positions: np.ndarray) -> list[str]:
        """The keys of the clips at some places of the stream."""
        found, _, _ = self._locate_clips(positions)
        return [
            self.datasets[s].clip_key(n, r)
            for s, n, r in zip(found.source.tolist(), found.shard.tolist(), found.row.tolist(), strict=True)
        ]

    def batches(self, position: int = 0) -> Iterator[Batch]:
        """From a place of the stream on; read ahead by `threads` threads (0: none), in order all the same."""
        try:
            yield from self._iter_prefetched(position) if self.num_threads else self._iter_batches(position)
        finally:
            for split in self.datasets:
                split.cancel_prefetch()

    def _iter_batches(self, position: int) -> Iterator[Batch]:
        plan = self._plan(position, _FIRST_PLAN_BATCHES)
        while True:
            yield from (plan.batch(i) for i in range(len(plan)))
            plan = self._plan(plan.end, 2 * len(plan))

    def _iter_prefetched(self, position: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="stream") as pool:
            planned = pool.submit(self._plan, position, _FIRST_PLAN_BATCHES)
            ahead: collections.deque[Future[list[Batch]]] = collections.deque()
            try:
                while True:
                    plan = planned.result()
                    for first in range(0, len(plan), _BATCHES_PER_TASK):
                        if len(ahead) > self.num_threads + 1:
                            yield from ahead.popleft().result()
                        ahead.append(pool.submit(plan.batches, first, first + _BATCHES_PER_TASK))
                    planned = pool.submit(self._plan, plan.end, 2 * len(plan))
            finally:
                planned.cancel()
                for future in ahead:
                    future.cancel()

    def _plan(self, position: int, num_batches: int) -> _BatchPlan:
        """What to copy for so many batches from a place on, or fewer: half a window's, for their shards stay open."""
        stride = self.batch_size * self.world_size
        n = max(1, min(num_batches, _MAX_PLANNED_CLIPS // self.batch_size, self.sampler.lookahead // (2 * stride)))
        starts = position + stride * np.arange(n)
        places = (starts[:, None] + self.rank * self.batch_size + np.arange(self.batch_size)).ravel()
        self._prefetch_shards(places)
        found, at, held = self._locate_clips(places)
        offsets = None
        if self.max_frames is not None and (at[:, 1] > self.max_frames).any():
            room = np.maximum(0, at[:, 1] - self.max_frames) + 1
            offsets = permute_indices(places % room, room, fold_key(self.seed, -3))
        return _BatchPlan(
            self.datasets, found.source, at, held, places, self.batch_size, self.max_frames, offsets, starts + stride
        )

    def _prefetch_shards(self, places: np.ndarray) -> None:
        """Have shards from afar on their way before they are needed."""
        if any(split.shard_cache for split in self.datasets):
            coming = self.sampler.upcoming_shards(places)
            for source, split in enumerate(self.datasets):
                split.prefetch([n for s, n in coming if s == source], self.rank)

    def _locate_clips(self, places: np.ndarray) -> tuple[ClipLocations, np.ndarray, list[MappedShard]]:
        """What stands at some places, with stand-ins for what is lost; where it lies [n, 3]; and what it lies in."""
        found = self.sampler(places)
        at, held, lost = _clip_addresses(self.datasets, found)
        for attempt in range(1, _MAX_REPLACEMENTS):
            if not len(lost):
                return found, at, held
            other = self.sampler(places[lost] + attempt * _REPLACEMENT_STRIDE)
            for mine, theirs in zip(vars(found).values(), vars(other).values(), strict=True):
                mine[lost] = theirs
            at[lost], more, still = _clip_addresses(self.datasets, other)
            held, lost = held + more, lost[still]
        raise InputError(f"{len(lost)} clips of lost shards have no other clip to stand in for them")


class _BatchPlan:
    """Batches about to be copied out of shards."""

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
        """For n batches of B clips (the last may hold fewer) in a row; all arrays are int64.

        source: [clips]; at: [clips, 3], addresses of codes and prompts as of `OpenShard`; held: keeps these alive;
        places: [clips]; most, offsets: crop to so many frames, from these [clips] on; after: [n], the stream's places.
        """
        self.shards, self.batch_size, self.next_positions = shards, batch_size, next_positions.tolist()
        self.K, self.P = datasets[0].codebooks, datasets[0].manifest.prompt_dim
        self.datasets, self.source, self.max_code = datasets, source, datasets[0].manifest.codec["codebook_size"] - 1
        self.stored_codebooks = np.array([split.manifest.codebooks for split in datasets])[source]
        self.codes, self.stored_frames, self.prompts = addresses[:, 0], addresses[:, 1], addresses[:, 2]
        self.frames = self.stored_frames if max_frames is None else np.minimum(self.stored_frames, max_frames)
        self.offsets = np.zeros_like(self.frames) if offsets is None else offsets
        firsts = np.arange(0, len(positions), batch_size)
        least, self.max_frames = (f.reduceat(self.frames, firsts).tolist() for f in (np.minimum, np.maximum))
        # one length, nothing cropped: the first K codebooks are then the first K * T numbers of each clip
        cropped = np.logical_or.reduceat(self.frames < self.stored_frames, firsts).tolist()
        fits = MAX_ITEM_BYTES // (self.K * CODES_DTYPE.itemsize)
        self.is_uniform = [a == b <= fits and not c for a, b, c in zip(least, self.max_frames, cropped, strict=True)]
        columns = (self.codes // ALIGN - 1, self.prompts // ALIGN - 1, self.frames, positions)
        self.columns = list(zip(*(_split_chunks(x, batch_size) for x in columns), strict=True))

    def __len__(self) -> int:
        return len(self.max_frames)

    @property
    def end(self) -> int:
        """The place of the stream after all of it."""
        return self.next_positions[-1]

    def batches(self, first: int, last: int) -> list[Batch]:
        """Some of the batches, as far as there are any."""
        return [self.batch(i) for i in range(first, min(last, len(self)))]

    def batch(self, i: int) -> Batch:
        """Batch number i, copied."""
        K, P, T = self.K, self.P, self.max_frames[i]
        code_items, prompt_items, frames, places = self.columns[i]
        if self.is_uniform[i]:
            codes = memory_as_array(2 * K * T)[code_items].view(np.int16).reshape(len(code_items), K, T)
        else:
            codes = self._padded(slice(i * self.batch_size, (i + 1) * self.batch_size), T)
        if codes.size and int(codes.view(np.uint16).max()) > self.max_code:  # a GPU would say no more than "assert"
            where = {
                self.datasets[n].store.display_path()
                for n in self.source[i * self.batch_size : (i + 1) * self.batch_size].tolist()
            }
            raise InputError(
                f"a clip in {' or '.join(sorted(where))} holds codes above {self.max_code}: its shard is damaged, and "
                "`python -m pipeline.shards verify` says which"
            )
        half = memory_as_array(2 * P)[prompt_items].view(np.float16).reshape(-1, P)
        return Batch(
            torch.from_numpy(codes), torch.from_numpy(frames), torch.from_numpy(half), self.next_positions[i], places
        )

    def _padded(self, clips: slice, T: int) -> np.ndarray:
        """Codes of clips of several lengths: int16 [B, K, T]."""
        columns = (self.codes, self.stored_codebooks, self.stored_frames, self.offsets, self.frames)
        rows = list(zip(*(x[clips].tolist() for x in columns), strict=True))
        codes = np.zeros((len(rows), self.K, T), np.int16)
        for i, (address, books, whole, start, frames) in enumerate(rows):
            codes[i, :, :frames] = array_at(address, (books, whole), CODES_DTYPE)[: self.K, start : start + frames]
        return codes


def iter_once(
    dataset: ShardedDataset, batch_size: int, rank: int = 0, world_size: int = 1, max_frames: int | None = None
) -> Iterator[Batch]:
    """Every clip of a split exactly once over all ranks, on disk's order; longer clips give their first `frames`.

    Ranks may get different numbers of batches (their counts of clips differ by one at most): no collective inside.
    Clips of lost shards are left out.
    """
    ends = np.cumsum(dataset.clips_per_shard)
    mine = np.arange(rank, len(dataset), world_size)
    planned = -(-_MAX_PLANNED_CLIPS // batch_size) * batch_size
    for first in range(0, len(mine), planned):
        places = mine[first : first + planned]
        number = np.searchsorted(ends, places, side="right")
        none = np.zeros_like(places)
        at, held, lost = _clip_addresses(
            [dataset], ClipLocations(none, number, places - (ends - dataset.clips_per_shard)[number], none)
        )
        at, places = np.delete(at, lost, 0), np.delete(places, lost)
        if len(places):
            after = np.append(places[batch_size::batch_size], places[-1] + 1)
            plan = _BatchPlan([dataset], np.zeros_like(places), at, held, places, batch_size, max_frames, None, after)
            yield from (plan.batch(i) for i in range(len(plan)))


def _split_chunks(x: np.ndarray, size: int) -> list[np.ndarray]:
    """A row in pieces of a size, the last one shorter if need be; quicker than np.split."""
    whole = len(x) // size * size
    return [*x[:whole].reshape(-1, size), *([x[whole:]] if whole < len(x) else [])]


def _clip_addresses(
    splits: Sequence[ShardedDataset], found: ClipLocations
) -> tuple[np.ndarray, list[MappedShard], np.ndarray]:
    """Where clips lie, int64 [n, 3] as of `OpenShard`; the shards that they lie in; and which clips are lost."""
    at, held, lost = np.zeros((len(found.row), 3), np.int64), [], []
    joint = found.source * (1 + found.shard.max(initial=0)) + found.shard
    joint = joint.astype(np.uint16) if joint.max(initial=0) < 2**16 else joint  # sorted in a fraction of the time
    order = np.argsort(joint, kind="stable")
    for clips in np.split(order, np.flatnonzero(np.diff(joint[order])) + 1) if len(order) else []:
        shard = splits[int(found.source[clips[0]])].get_shard(int(found.shard[clips[0]]))
        if shard is None:
            lost.append(clips)
        else:
            at[clips] = shard.addresses[found.row[clips]]
            held.append(shard)
    return at, held, np.concatenate([np.zeros(0, np.int64), *lost])
