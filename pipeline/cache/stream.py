"""Shards read back as batches, over ranks and threads: exact, at memory speed, from any place of the stream.

    place    0 ............ m ........... 2m ........... 3m ........... 4m      m: clips of a rank's batch; 2 ranks
             rank 0 batch 0   rank 1 batch 0  rank 0 batch 1  rank 1 batch 1

Which clip stands at a place is the order's to say (`pipeline.cache.order`), on all ranks alike; a rank only cuts its
own places out. A batch knows the place that the run has reached when all ranks have taken theirs: that number is saved
with the model, and is all that a resume needs, on any number of ranks or threads.

Letters: B clips, K codebooks, T frames, P prompt width, n samples.
"""

from __future__ import annotations

import collections
import functools
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.manifest import Manifest
from pipeline.cache.order import Mixture, Order, key, permuted
from pipeline.cache.shard import CODES, PROMPT, key_at, load_index
from pipeline.cache.store import Store, open_store
from pipeline.errors import InputError

_AHEAD = 64  # batches whose places are worked out in one go


@dataclass(frozen=True)
class Batch:
    """Clips of one rank.

    codes: int16 [B, K, T], 0 where padded; frames: int64 [B], the real ones; prompt: float32 [B, P];
    place: the place of the stream after this batch on all ranks; clips: the places of these clips, int64 [B].
    """

    codes: Tensor
    frames: Tensor
    prompt: Tensor
    place: int
    clips: np.ndarray

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, frames and prompt on a device, copied without waiting where that is possible."""
        if device.type == "cpu":
            return self.codes, self.frames, self.prompt
        return tuple(x.pin_memory().to(device, non_blocking=True) for x in (self.codes, self.frames, self.prompt))  # type: ignore[return-value]


class OpenShard:
    """One shard, mapped: its bytes as two kinds of numbers, and the rows of its index."""

    def __init__(self, store: Store, name: str, samples: int) -> None:
        where = store.where(name)
        try:
            view = store.view(name)
        except FileNotFoundError as error:
            raise InputError(f"{where} is in the manifest but not there: `python -m pipeline.shards verify`") from error
        index = load_index(store, name, view)
        ends = index[:, 3] + index[:, 4]
        if len(index) != samples or len(view) < ends.max(initial=0):
            raise InputError(f"{where} is cut short or another's: `python -m pipeline.shards verify` says more")
        even = len(view) // 2 * 2
        self.bytes = view
        self.codes = np.frombuffer(view[:even], CODES)
        self.prompts = np.frombuffer(view[:even], PROMPT)
        self.rows = index[:, :3].tolist()  # codes' offset, frames, prompt's offset


class Split:
    """One split of one cache, open for random reading. At most `open_shards` stay mapped."""

    def __init__(self, folder: str | Path, split: str, codebooks: int | None = None, open_shards: int = 512) -> None:
        """codebooks: how many to read of those written. Raises InputError for a missing or unfit cache."""
        self.store = open_store(folder)
        self.manifest = Manifest.load(self.store)
        self.name = split
        self.shards = self.manifest.splits.get(split, [])
        self.clips = np.array([shard.samples for shard in self.shards], np.int64)
        self.codebooks = codebooks or self.manifest.codebooks
        if self.codebooks > self.manifest.codebooks:
            raise InputError(
                f"{self.store.where()} holds {self.manifest.codebooks} codebooks, and {self.codebooks} are asked for"
            )
        _allow_open_files(open_shards + 256)
        self.shard = functools.lru_cache(maxsize=open_shards)(self._open)

    def __len__(self) -> int:
        return int(self.clips.sum())

    def _open(self, number: int) -> OpenShard:
        shard = self.shards[number]
        return OpenShard(self.store, shard.name, shard.samples)

    def longest(self) -> int:
        """The frames of the longest clip; 0 where there is none."""
        indices = (load_index(self.store, shard.name) for shard in self.shards)
        return max((int(index[:, 1].max(initial=0)) for index in indices), default=0)

    def key(self, shard: int, row: int) -> str:
        """The key of a clip."""
        opened = self.shard(shard)
        return key_at(opened.bytes, opened.rows[row][0])


class Stream:
    """Batches of one rank's clips, endlessly, in the order of training."""

    def __init__(
        self,
        splits: Sequence[Split],
        order: Order | Mixture,
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

    def keys(self, places: np.ndarray) -> list[str]:
        """The keys of the clips at some places of the stream."""
        found = self.order(places)
        return [
            self.splits[s].key(n, r)
            for s, n, r in zip(found.source.tolist(), found.shard.tolist(), found.row.tolist(), strict=True)
        ]

    def batches(self, place: int = 0) -> Iterator[Batch]:
        """From a place of the stream on; read ahead by `threads` threads (0: none), in order all the same."""
        jobs = self._jobs(place)
        if not self.threads:
            yield from (self._read(*job) for job in jobs)
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="stream") as pool:
            ahead: collections.deque[Future[Batch]] = collections.deque()
            try:
                for job in jobs:
                    ahead.append(pool.submit(self._read, *job))
                    if len(ahead) > 2 * self.threads + 2:
                        yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _jobs(self, place: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]]:
        """For each batch: its clips' places, sources, shards, rows, and the place after it."""
        stride = self.batch * self.ranks
        while True:
            starts = place + stride * np.arange(_AHEAD)
            places = starts[:, None] + self.rank * self.batch + np.arange(self.batch)
            found = self.order(places.ravel())
            columns = (x.reshape(places.shape) for x in (found.source, found.shard, found.row))
            yield from zip(places, *columns, (starts + stride).tolist(), strict=True)
            place += stride * _AHEAD

    def _read(self, places: np.ndarray, source: np.ndarray, shard: np.ndarray, row: np.ndarray, place: int) -> Batch:
        shards = [self.splits[s].shard(n) for s, n in zip(source.tolist(), shard.tolist(), strict=True)]
        books = [self.splits[s].manifest.codebooks for s in source.tolist()]
        rows = [opened.rows[r] for opened, r in zip(shards, row.tolist(), strict=True)]
        starts = None
        if self.frames is not None and any(frames > self.frames for _, frames, _ in rows):
            room = np.maximum(0, np.array([frames for _, frames, _ in rows]) - self.frames) + 1
            starts = permuted(places % room, room, key(self.seed, -3)).tolist()
        return _collate(shards, rows, books, self.splits[0], self.frames, starts, places, place)


def once(split: Split, batch: int, rank: int = 0, ranks: int = 1, frames: int | None = None) -> Iterator[Batch]:
    """Every clip of a split exactly once over all ranks, on disk's order; longer clips give their first `frames`.

    Ranks may get different numbers of batches (their counts of clips differ by one at most): no collective inside.
    """
    ends = np.cumsum(split.clips)
    mine = np.arange(rank, len(split), ranks)
    for first in range(0, len(mine), batch):
        places = mine[first : first + batch]
        number = np.searchsorted(ends, places, side="right")
        row = places - (ends - split.clips)[number]
        shards = [split.shard(n) for n in number.tolist()]
        rows = [opened.rows[r] for opened, r in zip(shards, row.tolist(), strict=True)]
        books = [split.manifest.codebooks] * len(rows)
        yield _collate(shards, rows, books, split, frames, None, places, int(places[-1]) + 1)


def _collate(
    shards: list[OpenShard],
    rows: list[list[int]],
    books: list[int],
    like: Split,
    most: int | None,
    starts: list[int] | None,
    places: np.ndarray,
    place: int,
) -> Batch:
    """Copy clips out of their shards, padded to the longest, cropped to `most` frames from `starts`."""
    frames = [min(n, most or n) for _, n, _ in rows]
    K, T, P = like.codebooks, max(frames), like.manifest.prompt_width
    even = min(frames) == T
    codes = (np.empty if even else np.zeros)((len(rows), K, T), CODES)
    prompts = np.empty((len(rows), P), PROMPT)
    flat = codes.reshape(len(rows), K * T)
    for i, (shard, (codes_at, n, prompt_at)) in enumerate(zip(shards, rows, strict=True)):
        at = codes_at >> 1
        if n == T:
            flat[i] = shard.codes[at : at + K * T]  # the first K codebooks are the first K * T numbers
        else:
            start = starts[i] if starts else 0
            whole = shard.codes[at : at + books[i] * n].reshape(books[i], n)
            codes[i, :, : frames[i]] = whole[:K, start : start + frames[i]]
        prompts[i] = shard.prompts[prompt_at >> 1 : (prompt_at >> 1) + P]
    return Batch(
        torch.from_numpy(codes.view(np.int16)),
        torch.tensor(frames),
        torch.from_numpy(prompts).float(),
        place,
        places,
    )


def _allow_open_files(count: int) -> None:
    """A mapped shard keeps a file open: ask for as many as are needed, up to what the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
