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
from pipeline.data.dataset import ALIGN, WIDEST, MappedShard, ShardedDataset, array_at, memory_as_array
from pipeline.data.sampler import ClipLocations, Sampler, permute_indices
from pipeline.data.shard import CODES

_PLANNED = 4096  # clips that are looked up in one go, at most
_FIRST = 8  # batches that are looked up in the first go, so that it comes soon
_PIECE = 4  # batches that a thread reads in one go
_STEP, _TRIES = 10_007, 100  # places from a lost clip to the one that stands in for it, and how many are tried


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
    clips: np.ndarray

    @property
    def prompt(self) -> Tensor:
        """The prompts: float32 [B, P]."""
        return self.prompts_fp16.float()

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K, T], frames [B], prompts [B, D] (float32) on a device, copied without waiting where possible."""
        if device.type == "cpu":
            return self.codes, self.frames, self.prompt
        codes, frames, half = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.codes, self.frames, self.prompts_fp16)
        )
        return codes, frames, half.float()


@dataclass(frozen=True)
class LossReport:
    """What could not be read so far: clips, and the names of the shards that held them."""

    clips: int
    shards: list[str]


class ShardDataLoader:
    """Batches of one rank's clips, endlessly, in the order of training."""

    def __init__(
        self,
        splits: Sequence[ShardedDataset],
        order: Sampler,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        frames: int | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """batch: clips a rank; frames: clips longer than this are cropped, at a start that their place decides."""
        if not batch > 0 or not 0 <= rank < ranks:
            raise InputError(f"a batch of {batch} clips for rank {rank} of {ranks} cannot be read")
        self.splits, self.order, self.batch, self.rank, self.ranks = list(splits), order, batch, rank, ranks
        self.frames, self.seed, self.threads = frames, seed, threads

    @property
    def lost(self) -> LossReport:
        """What this rank could not read so far."""
        shards = [
            split.store.display_path(split.shards[n].name) for split in self.splits for n in list(split.lost_shards)
        ]
        return LossReport(sum(split.num_lost_clips() for split in self.splits), shards)

    def keys(self, places: np.ndarray) -> list[str]:
        """The keys of the clips at some places of the stream."""
        found, _, _ = self._find(places)
        return [
            self.splits[s].key(n, r)
            for s, n, r in zip(found.source.tolist(), found.shard.tolist(), found.row.tolist(), strict=True)
        ]

    def batches(self, place: int = 0) -> Iterator[Batch]:
        """From a place of the stream on; read ahead by `threads` threads (0: none), in order all the same."""
        try:
            yield from self._read_ahead(place) if self.threads else self._read(place)
        finally:
            for split in self.splits:
                split.cancel_prefetch()

    def _read(self, place: int) -> Iterator[Batch]:
        plan = self._plan(place, _FIRST)
        while True:
            yield from (plan.batch(i) for i in range(len(plan)))
            plan = self._plan(plan.end, 2 * len(plan))

    def _read_ahead(self, place: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="stream") as pool:
            planned = pool.submit(self._plan, place, _FIRST)
            ahead: collections.deque[Future[list[Batch]]] = collections.deque()
            try:
                while True:
                    plan = planned.result()
                    for first in range(0, len(plan), _PIECE):
                        if len(ahead) > self.threads + 1:
                            yield from ahead.popleft().result()
                        ahead.append(pool.submit(plan.batches, first, first + _PIECE))
                    planned = pool.submit(self._plan, plan.end, 2 * len(plan))
            finally:
                planned.cancel()
                for future in ahead:
                    future.cancel()

    def _plan(self, place: int, batches: int) -> _BatchPlan:
        """What to copy for so many batches from a place on, or fewer: half a window's, for their shards stay open."""
        stride = self.batch * self.ranks
        n = max(1, min(batches, _PLANNED // self.batch, self.order.lookahead // (2 * stride)))
        starts = place + stride * np.arange(n)
        places = (starts[:, None] + self.rank * self.batch + np.arange(self.batch)).ravel()
        self._fetch(places)
        found, at, held = self._find(places)
        offsets = None
        if self.frames is not None and (at[:, 1] > self.frames).any():
            room = np.maximum(0, at[:, 1] - self.frames) + 1
            offsets = permute_indices(places % room, room, fold_key(self.seed, -3))
        return _BatchPlan(
            self.splits, found.source, at, held, places, self.batch, self.frames, offsets, starts + stride
        )

    def _fetch(self, places: np.ndarray) -> None:
        """Have shards from afar on their way before they are needed."""
        if any(split.copies for split in self.splits):
            coming = self.order.upcoming_shards(places)
            for source, split in enumerate(self.splits):
                split.prefetch([n for s, n in coming if s == source], self.rank)

    def _find(self, places: np.ndarray) -> tuple[ClipLocations, np.ndarray, list[MappedShard]]:
        """What stands at some places, with stand-ins for what is lost; where it lies [n, 3]; and what it lies in."""
        found = self.order(places)
        at, held, lost = _addresses(self.splits, found)
        for attempt in range(1, _TRIES):
            if not len(lost):
                return found, at, held
            other = self.order(places[lost] + attempt * _STEP)
            for mine, theirs in zip(vars(found).values(), vars(other).values(), strict=True):
                mine[lost] = theirs
            at[lost], more, still = _addresses(self.splits, other)
            held, lost = held + more, lost[still]
        raise InputError(f"{len(lost)} clips of lost shards have no other clip to stand in for them")


class _BatchPlan:
    """Batches about to be copied out of shards."""

    def __init__(
        self,
        splits: list[ShardedDataset],
        source: np.ndarray,
        at: np.ndarray,
        held: list[MappedShard],
        places: np.ndarray,
        batch: int,
        most: int | None,
        offsets: np.ndarray | None,
        after: np.ndarray,
    ) -> None:
        """For n batches of B clips (the last may hold fewer) in a row; all arrays are int64.

        source: [clips]; at: [clips, 3], addresses of codes and prompts as of `OpenShard`; held: keeps these alive;
        places: [clips]; most, offsets: crop to so many frames, from these [clips] on; after: [n], the stream's places.
        """
        self.held, self.size, self.after = held, batch, after.tolist()
        self.K, self.P = splits[0].codebooks, splits[0].manifest.prompt_dim
        self.splits, self.source, self.most_code = splits, source, splits[0].manifest.codec["codebook_size"] - 1
        self.books = np.array([split.manifest.codebooks for split in splits])[source]
        self.codes, self.whole, self.prompts = at[:, 0], at[:, 1], at[:, 2]
        self.frames = self.whole if most is None else np.minimum(self.whole, most)
        self.offsets = np.zeros_like(self.frames) if offsets is None else offsets
        firsts = np.arange(0, len(places), batch)
        least, self.longest = (f.reduceat(self.frames, firsts).tolist() for f in (np.minimum, np.maximum))
        # one length, nothing cropped: the first K codebooks are then the first K * T numbers of each clip
        cropped = np.logical_or.reduceat(self.frames < self.whole, firsts).tolist()
        fits = WIDEST // (self.K * CODES.itemsize)
        self.even = [a == b <= fits and not c for a, b, c in zip(least, self.longest, cropped, strict=True)]
        columns = (self.codes // ALIGN - 1, self.prompts // ALIGN - 1, self.frames, places)
        self.columns = list(zip(*(_cut(x, batch) for x in columns), strict=True))

    def __len__(self) -> int:
        return len(self.longest)

    @property
    def end(self) -> int:
        """The place of the stream after all of it."""
        return self.after[-1]

    def batches(self, first: int, last: int) -> list[Batch]:
        """Some of the batches, as far as there are any."""
        return [self.batch(i) for i in range(first, min(last, len(self)))]

    def batch(self, i: int) -> Batch:
        """Batch number i, copied."""
        K, P, T = self.K, self.P, self.longest[i]
        code_items, prompt_items, frames, places = self.columns[i]
        if self.even[i]:
            codes = memory_as_array(2 * K * T)[code_items].view(np.int16).reshape(len(code_items), K, T)
        else:
            codes = self._padded(slice(i * self.size, (i + 1) * self.size), T)
        if codes.size and int(codes.view(np.uint16).max()) > self.most_code:  # a GPU would say no more than "assert"
            where = {
                self.splits[n].store.display_path() for n in self.source[i * self.size : (i + 1) * self.size].tolist()
            }
            raise InputError(
                f"a clip in {' or '.join(sorted(where))} holds codes above {self.most_code}: its shard is damaged, and "
                "`python -m pipeline.shards verify` says which"
            )
        half = memory_as_array(2 * P)[prompt_items].view(np.float16).reshape(-1, P)
        return Batch(torch.from_numpy(codes), torch.from_numpy(frames), torch.from_numpy(half), self.after[i], places)

    def _padded(self, clips: slice, T: int) -> np.ndarray:
        """Codes of clips of several lengths: int16 [B, K, T]."""
        columns = (self.codes, self.books, self.whole, self.offsets, self.frames)
        rows = list(zip(*(x[clips].tolist() for x in columns), strict=True))
        codes = np.zeros((len(rows), self.K, T), np.int16)
        for i, (address, books, whole, start, frames) in enumerate(rows):
            codes[i, :, :frames] = array_at(address, (books, whole), CODES)[: self.K, start : start + frames]
        return codes


def iter_once(
    split: ShardedDataset, batch: int, rank: int = 0, ranks: int = 1, frames: int | None = None
) -> Iterator[Batch]:
    """Every clip of a split exactly once over all ranks, on disk's order; longer clips give their first `frames`.

    Ranks may get different numbers of batches (their counts of clips differ by one at most): no collective inside.
    Clips of lost shards are left out.
    """
    ends = np.cumsum(split.clips)
    mine = np.arange(rank, len(split), ranks)
    planned = -(-_PLANNED // batch) * batch
    for first in range(0, len(mine), planned):
        places = mine[first : first + planned]
        number = np.searchsorted(ends, places, side="right")
        none = np.zeros_like(places)
        at, held, lost = _addresses([split], ClipLocations(none, number, places - (ends - split.clips)[number], none))
        at, places = np.delete(at, lost, 0), np.delete(places, lost)
        if len(places):
            after = np.append(places[batch::batch], places[-1] + 1)
            plan = _BatchPlan([split], np.zeros_like(places), at, held, places, batch, frames, None, after)
            yield from (plan.batch(i) for i in range(len(plan)))


def _cut(x: np.ndarray, size: int) -> list[np.ndarray]:
    """A row in pieces of a size, the last one shorter if need be; quicker than np.split."""
    whole = len(x) // size * size
    return [*x[:whole].reshape(-1, size), *([x[whole:]] if whole < len(x) else [])]


def _addresses(
    splits: Sequence[ShardedDataset], found: ClipLocations
) -> tuple[np.ndarray, list[MappedShard], np.ndarray]:
    """Where clips lie, int64 [n, 3] as of `OpenShard`; the shards that they lie in; and which clips are lost."""
    at, held, lost = np.zeros((len(found.row), 3), np.int64), [], []
    joint = found.source * (1 + found.shard.max(initial=0)) + found.shard
    joint = joint.astype(np.uint16) if joint.max(initial=0) < 2**16 else joint  # sorted in a fraction of the time
    order = np.argsort(joint, kind="stable")
    for clips in np.split(order, np.flatnonzero(np.diff(joint[order])) + 1) if len(order) else []:
        shard = splits[int(found.source[clips[0]])].shard(int(found.shard[clips[0]]))
        if shard is None:
            lost.append(clips)
        else:
            at[clips] = shard.at[found.row[clips]]
            held.append(shard)
    return at, held, np.concatenate([np.zeros(0, np.int64), *lost])
