"""The data loader: batches from shards for any rank, from any position of the training stream.

    position   0 ............. m ............. 2m ............. 3m ............. 4m     m: batch size; 2 ranks
               rank 0 batch 0   rank 1 batch 0   rank 0 batch 1   rank 1 batch 1

The sampler (`pipeline.data.sampler`) decides which clip is at a position, the same on all ranks; a rank reads its own
positions only. Each batch carries the position that the run reaches when all ranks have consumed theirs. This number
is saved with the model, and it is all that a resume needs, on any number of ranks or threads.

A clip of a lost shard is replaced by another clip, chosen by the position alone: batches stay full and ranks in step.
Clips are read by `os.preadv` into the buffers of their batch. A memory map would be twice as fast, but a shard that is
truncated while it is open would end the process (SIGBUS); so it is a lost shard.

Letters: B clips, K codebooks, T frames, N prompt vectors of a clip, P prompt dimensions, n batches.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.seeds import fold_key
from pipeline.data.dataset import ShardedDataset
from pipeline.data.open_shard import OpenShard
from pipeline.data.sampler import ClipLocations, Sampler, permute_indices

_MAX_PLANNED_CLIPS = 4096  # clips that are located together
_FIRST_PLAN_BATCHES = 1  # then twice as many each time: the first batch only waits for its own shards
_BATCHES_PER_TASK = 4  # batches that a thread reads together
_REPLACEMENT_STRIDE = 10_007  # positions between a lost clip and the next candidate that replaces it
_MAX_REPLACEMENTS = 100  # candidates


@dataclass(slots=True)
class Batch:
    """Clips of one rank.

    Attributes:
        codes: int16 [B, K, T], padded with 0.
        frames: int64 [B], true number of frames of each clip.
        prompts_fp16: float16 [B, N, P], the N prompt vectors of each clip as stored.
        position: position of the stream after this batch on all ranks; saved to resume.
        clip_positions: int64 [B], position of each clip.
        labels: the value of each clip, by the names of the labels that the dataset reads; None where a clip has none.
    """

    codes: Tensor
    frames: Tensor
    prompts_fp16: Tensor
    position: int
    clip_positions: np.ndarray
    labels: dict[str, list[object]] = field(default_factory=dict)

    @property
    def prompts(self) -> Tensor:
        """Prompt vectors: float32 [B, N, P]."""
        return self.prompts_fp16.float()

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Copy to a device, asynchronously where possible.

        Returns:
            codes: int16 [B, K, T].
            frames: int64 [B].
            prompts: float32 [B, N, P].
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
        locations = self._locate_clips(positions)[0]
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
            yield from self._read(plan, 0, len(plan))
            plan = self._plan(plan.end, 2 * len(plan))

    def _iter_prefetched(self, position: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="stream") as pool:
            next_plan = pool.submit(self._plan, position, _FIRST_PLAN_BATCHES)
            reads: collections.deque[Future[list[Batch]]] = collections.deque()
            try:
                while True:
                    while reads and not next_plan.done():
                        yield from reads.popleft().result()
                    plan = next_plan.result()
                    for first in range(0, len(plan), _BATCHES_PER_TASK):
                        if len(reads) > self.num_threads + 1:
                            yield from reads.popleft().result()
                        reads.append(pool.submit(self._read, plan, first, first + _BATCHES_PER_TASK))
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
        return self._plan_positions(positions, starts + stride)

    def _plan_positions(self, positions: np.ndarray, next_positions: np.ndarray) -> _BatchPlan:
        locations, rows, shards = self._locate_clips(positions)
        starts = np.zeros_like(positions)
        if self.max_frames is not None and (rows[:, 1] > self.max_frames).any():
            num_starts = np.maximum(0, rows[:, 1] - self.max_frames) + 1
            starts = permute_indices(positions % num_starts, num_starts, fold_key(self.seed, -3))
        return _BatchPlan(
            self.datasets, locations, rows, shards, positions, self.batch_size, self.max_frames, starts, next_positions
        )

    def _read(self, plan: _BatchPlan, first: int, last: int) -> list[Batch]:
        """Return batches `first` to `last` of a plan, excluded, as far as they exist."""
        return [self._read_batch(plan, i) for i in range(first, min(last, len(plan)))]

    def _read_batch(self, plan: _BatchPlan, i: int) -> Batch:
        batch = plan.batch(i)
        while batch is None:  # a shard was lost: other clips replace its clips
            plan, i = self._plan_positions(plan.positions_of(i), plan.next_positions[i : i + 1]), 0
            batch = plan.batch(i)
        return batch

    def _prefetch_shards(self, positions: np.ndarray) -> None:
        """Start downloads of remote shards before they are needed."""
        if any(dataset.shard_cache for dataset in self.datasets):
            upcoming = self.sampler.upcoming_shards(positions)
            for source, dataset in enumerate(self.datasets):
                dataset.prefetch([n for s, n in upcoming if s == source], self.rank)

    def _locate_clips(self, positions: np.ndarray) -> tuple[ClipLocations, np.ndarray, np.ndarray]:
        """Return where the clips at positions [n] are, with replacements for lost ones.

        Returns:
            locations: of the clips.
            rows: int64 [n, 3], as in `OpenShard.rows`.
            shards: object [n], the open shard of each clip.
        """
        locations = self.sampler(positions)
        rows, shards, lost = _open_clips(self.datasets, locations)
        for attempt in range(1, _MAX_REPLACEMENTS):
            if not len(lost):
                return locations, rows, shards
            replacements = self.sampler(positions[lost] + attempt * _REPLACEMENT_STRIDE)
            for target, values in zip(vars(locations).values(), vars(replacements).values(), strict=True):
                target[lost] = values
            rows[lost], shards[lost], still_lost = _open_clips(self.datasets, replacements)
            lost = lost[still_lost]
        raise InputError(f"{len(lost)} clips of lost shards cannot be replaced: no readable clip was found")


@dataclass
class _BatchPlan:
    """The clips of n consecutive batches, which are read on demand; the last batch may be smaller.

    Attributes:
        datasets: the sources.
        locations: of the clips.
        rows: int64 [clips, 3], as in `OpenShard.rows`.
        shards: object [clips], the open shard of each clip.
        positions: int64 [clips], stream positions.
        batch_size: clips per batch.
        max_frames: longer clips are cropped.
        starts: int64 [clips], first frame of cropped clips, 0 for others.
        next_positions: int64 [n], position of the stream after each batch on all ranks.
    """

    datasets: list[ShardedDataset]
    locations: ClipLocations
    rows: np.ndarray
    shards: np.ndarray
    positions: np.ndarray
    batch_size: int
    max_frames: int | None
    starts: np.ndarray
    next_positions: np.ndarray

    def __post_init__(self) -> None:
        frames = self.rows[:, 1]
        self.frames = frames if self.max_frames is None else np.minimum(frames, self.max_frames)
        # per clip: shard, offset of its codes, stored frames, offset of its prompt, first frame, frames
        columns = (x.tolist() for x in (self.shards, *self.rows.T, self.starts, self.frames))
        self.clips: list[tuple[OpenShard, int, int, int, int, int]] = list(zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self.next_positions)

    @property
    def end(self) -> int:
        """Position of the stream after all batches."""
        return int(self.next_positions[-1])

    def positions_of(self, i: int) -> np.ndarray:
        """Return the positions of the clips of batch number i."""
        return self.positions[i * self.batch_size : (i + 1) * self.batch_size]

    def batch(self, i: int) -> Batch | None:
        """Read batch number i; None if one of its shards cannot be read any more, and is therefore lost."""
        first = i * self.batch_size
        clips, frames = self.clips[first : first + self.batch_size], self.frames[first : first + self.batch_size]
        manifest = self.datasets[0].manifest
        B, K, T = len(clips), self.datasets[0].codebooks, int(frames.max())
        N, P = manifest.prompt_frames, manifest.prompt_dim
        code_bytes, prompt_bytes = bytearray(2 * B * K * T), bytearray(2 * B * N * P)
        codes = np.frombuffer(code_bytes, np.int16).reshape(B, K, T)
        prompts = np.frombuffer(prompt_bytes, np.float16).reshape(B, N, P)
        all_codes, all_prompts = memoryview(code_bytes), memoryview(prompt_bytes)
        C, D = 2 * K * T, 2 * N * P  # bytes of a clip
        for row, (shard, codes_at, stored, prompt_at, start, length) in enumerate(clips):
            try:
                if stored == T:
                    shard.reader.read_into(codes_at, all_codes[row * C : (row + 1) * C])
                else:
                    clip = np.frombuffer(shard.reader.read(codes_at, 2 * K * stored), np.int16).reshape(K, stored)
                    codes[row, :, :length] = clip[:, start : start + length]
                shard.reader.read_into(prompt_at, all_prompts[row * D : (row + 1) * D])
            except (InputError, OSError) as error:
                source, number = self.locations.source[first + row], self.locations.shard[first + row]
                self.datasets[int(source)].mark_lost(int(number), error)
                return None
        max_code = manifest.codec["codebook_size"] - 1
        if codes.size and int(codes.view(np.uint16).max()) > max_code:  # a GPU would only report an assertion
            sources = np.unique(self.locations.source[first : first + B]).tolist()
            paths = sorted(self.datasets[n].store.display_path() for n in sources)
            raise InputError(
                f"a clip in {' or '.join(paths)} has codes above {max_code}: its shard is damaged; "
                "`python -m pipeline.shards verify` names the shard"
            )
        codes_t, frames_t, prompts_t = (torch.from_numpy(x) for x in (codes, frames, prompts))
        rows = self.locations.row[first : first + B].tolist()
        labels = {
            name: [clip[0].labels[name][row] for clip, row in zip(clips, rows, strict=True)]
            for name in self.datasets[0].labels
        }
        return Batch(codes_t, frames_t, prompts_t, int(self.next_positions[i]), self.positions_of(i), labels)


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
    left = np.arange(rank, len(dataset), world_size)
    planned = -(-_MAX_PLANNED_CLIPS // batch_size) * batch_size
    while len(left):
        positions, left = left[:planned], left[planned:]
        shard = np.searchsorted(ends, positions, side="right")
        row = positions - (ends - dataset.clips_per_shard)[shard]
        zeros = np.zeros_like(positions)
        locations = ClipLocations(zeros, shard, row, zeros)
        rows, shards, lost = _open_clips([dataset], locations)
        kept = np.delete(np.arange(len(positions)), lost)
        positions, starts = positions[kept], zeros[kept]
        after = np.append(positions[batch_size::batch_size], positions[-1:] + 1)
        plan = _BatchPlan(
            [dataset],
            locations.select(kept),
            rows[kept],
            shards[kept],
            positions,
            batch_size,
            max_frames,
            starts,
            after,
        )
        for i in range(len(plan)):
            batch = plan.batch(i)
            if batch is None:  # a shard was lost: the rest is planned without it
                left = np.concatenate([positions[i * batch_size :], left])
                break
            yield batch


def _open_clips(
    datasets: Sequence[ShardedDataset], locations: ClipLocations
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open the shards of n clips.

    Returns:
        rows: int64 [n, 3], as in `OpenShard.rows`.
        shards: object [n], the open shard of each clip; None where it is lost.
        lost: int64, indices of clips whose shards are lost.
    """
    n = len(locations.row)
    rows, shards, lost = np.zeros((n, 3), np.int64), np.full(n, None, object), [np.zeros(0, np.int64)]
    joint = locations.source * (1 + locations.shard.max(initial=0)) + locations.shard
    joint = joint.astype(np.uint16) if joint.max(initial=0) < 2**16 else joint  # sorts several times faster
    order = np.argsort(joint, kind="stable")
    for clips in np.split(order, np.flatnonzero(np.diff(joint[order])) + 1) if n else []:
        shard = datasets[int(locations.source[clips[0]])].get_shard(int(locations.shard[clips[0]]))
        if shard is None:
            lost.append(clips)
        else:
            rows[clips], shards[clips] = shard.rows[locations.row[clips]], shard
    return rows, shards, np.concatenate(lost)
