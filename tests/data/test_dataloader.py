"""The data loader: first k + rest == all, for any ranks, threads, shards and interruptions, with real tars."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.data.bucketing import bucket_by_length
from pipeline.data.dataloader import ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.sampler import EpochSampler, MixtureSampler
from tests.helpers.caches import K, clip_numbers, write_cache


def read(
    split: ShardedDataset, order: EpochSampler, position: int, steps: int, ranks: int, batch: int, threads: int
) -> list[list[int]]:
    """Return the clips of each global batch, over all ranks."""
    streams = [
        ShardDataLoader([split], order, batch_size=batch, rank=r, world_size=ranks, num_threads=threads)
        for r in range(ranks)
    ]
    runs = [list(itertools.islice(stream.batches(position), steps)) for stream in streams]
    assert all(b.position == position + (i + 1) * ranks * batch for run in runs for i, b in enumerate(run))
    return [sum((clip_numbers(run[i]) for run in runs), []) for i in range(steps)]


@given(
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    window=st.integers(0, 3),
    ranks=st.integers(1, 4),
    batch=st.integers(1, 4),
    stop=st.integers(0, 12),
    ranks_after=st.integers(1, 4),
    threads=st.sampled_from([0, 2]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resume_matches_unbroken_run(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[int],
    seed: int,
    window: int,
    ranks: int,
    batch: int,
    stop: int,
    ranks_after: int,
    threads: int,
) -> None:
    """Interrupted after `stop` steps and resumed on another number of ranks, the stream is the same."""
    split = ShardedDataset(write_cache(tmp_path_factory.mktemp("cache") / "c", shards), "train")
    order, n = EpochSampler(split.clips_per_shard, seed, window), sum(shards)
    unbroken = sum(read(split, order, 0, -(-2 * n // (ranks * batch)) + 1, ranks, batch, threads), [])
    assert sorted(unbroken[:n]) == list(range(n)) == sorted(unbroken[n : 2 * n])
    first = sum(read(split, order, 0, stop, ranks, batch, threads), [])
    rest = sum(read(split, order, len(first), -(-2 * n // (ranks_after * batch)), ranks_after, batch, threads), [])
    assert (first + rest)[: 2 * n] == unbroken[: 2 * n]


@given(shards=st.lists(st.integers(1, 9), min_size=1, max_size=5), ranks=st.integers(1, 9), batch=st.integers(1, 4))
@settings(max_examples=20)
def test_validation_reads_every_clip_once(
    tmp_path_factory: pytest.TempPathFactory, shards: list[int], ranks: int, batch: int
) -> None:
    split = ShardedDataset(write_cache(tmp_path_factory.mktemp("cache") / "c", shards), "train")
    seen = [n for r in range(ranks) for b in iter_once(split, batch, r, ranks) for n in clip_numbers(b)]
    assert sorted(seen) == list(range(sum(shards)))


def test_codes_are_read_as_written(tmp_path: Path) -> None:
    split = ShardedDataset(write_cache(tmp_path / "c", [4, 3], lengths=(6, 4, 9)), "train")
    for batch in iter_once(split, 7):
        assert batch.codes.shape == (7, K, 9) and batch.frames.tolist() == [6, 4, 9, 6, 4, 9, 6]
        for i, (codes, n) in enumerate(zip(batch.codes, batch.frames.tolist(), strict=True)):
            assert torch.equal(codes[:, :n], (torch.arange(K * n).view(K, n) + i).short())
            assert not codes[:, n:].any()


@pytest.mark.parametrize("lengths", [(0,), (0, 6)])
def test_clips_without_frames_are_read(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """External shards may have such clips; a batch of only these has T = 0."""
    split = ShardedDataset(write_cache(tmp_path / "c", [4, 4], lengths), "train")
    order = bucket_by_length(EpochSampler(split.clips_per_shard, 0), [split.lengths()], 0, max_padding=0.1)
    for batches in (
        iter_once(split, 4),
        itertools.islice(ShardDataLoader([split], order, batch_size=4, num_threads=0).batches(), 2),
    ):
        seen = list(batches)
        assert sorted(n for batch in seen for n in clip_numbers(batch)) == list(range(8))
        assert all(batch.codes.shape == (4, K, batch.frames.max()) for batch in seen)


def test_first_codebooks_are_read(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [5], lengths=(6, 4))
    whole, two = (next(iter_once(ShardedDataset(folder, "train", k), 5)).codes for k in (None, 2))
    assert torch.equal(two, whole[:, :2])
    with pytest.raises(InputError, match="has 3 codebooks, fewer than the 4 requested"):
        ShardedDataset(folder, "train", 4)


def test_crop_depends_on_position(tmp_path: Path) -> None:
    split = ShardedDataset(write_cache(tmp_path / "c", [40], lengths=(30, 3)), "train")
    order = EpochSampler(split.clips_per_shard, 0)
    runs = [
        list(
            itertools.islice(
                ShardDataLoader([split], order, batch_size=8, max_frames=5, seed=1, num_threads=t).batches(), 15
            )
        )
        for t in (0, 3)
    ]
    starts = set()
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a.codes, b.codes) and a.codes.shape[2] <= 5
        for codes, number, n in zip(a.codes, clip_numbers(a), a.frames.tolist(), strict=True):
            start = int(codes[0, 0]) - number
            assert n == (3 if number % 2 else 5) and 0 <= start <= (0 if number % 2 else 25)
            assert torch.equal(codes[1, :n] - codes[0, :n], torch.full((n,), 30 if number % 2 == 0 else 3).short())
            starts.add(start)
    assert len(starts) > 15


def test_mixture_reads_each_clip_from_its_dataset(tmp_path: Path) -> None:
    splits = [ShardedDataset(write_cache(tmp_path / name, [n]), "train") for name, n in (("a", 10), ("b", 30))]
    mixture = MixtureSampler(
        {"a": EpochSampler(splits[0].clips_per_shard, 0), "b": EpochSampler(splits[1].clips_per_shard, 0)},
        {"a": 1, "b": 3},
        0,
    )
    stream = ShardDataLoader(splits, mixture, batch_size=10)
    seen = [n for batch in itertools.islice(stream.batches(), 40) for n in clip_numbers(batch)]
    assert [seen.count(n) for n in range(10)] == pytest.approx([20] * 10, abs=3)  # both caches hold a clip 0..9
    assert all(seen.count(n) == pytest.approx(10, abs=2) for n in range(10, 30))


def test_clip_keys(tmp_path: Path) -> None:
    split = ShardedDataset(write_cache(tmp_path / "c", [2, 2]), "train")
    assert [split.clip_key(s, r) for s in (0, 1) for r in (0, 1)] == ["clip-0", "clip-1", "clip-2", "clip-3"]


def test_missing_and_truncated_shards_are_named(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [3, 4])
    (folder / "train-000000.tar").unlink()
    with pytest.raises(InputError, match=r"train-000000.tar is in the manifest but does not exist"):
        next(iter_once(ShardedDataset(folder, "train"), 3))
    for end in (".tar", ".index.npy"):
        (folder / f"train-000000{end}").write_bytes((folder / f"train-000001{end}").read_bytes())
    with pytest.raises(InputError, match=r"train-000000.tar is truncated or belongs to another"):
        next(iter_once(ShardedDataset(folder, "train"), 3))


def test_stopped_reader_leaves_no_threads(tmp_path: Path) -> None:
    import threading

    split = ShardedDataset(write_cache(tmp_path / "c", [20]), "train")
    batches = ShardDataLoader([split], EpochSampler(split.clips_per_shard, 0), batch_size=2, num_threads=3).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]
