"""Shards that are missing, cut short, unreadable or not of their index: set aside, told once, and stood in for."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler
from tests.helpers.caches import clip_numbers, write_cache

SHARDS, EACH = 20, 30


def missing(folder: Path, name: str) -> None:
    (folder / f"{name}.tar").unlink()


def cut_short(folder: Path, name: str) -> None:
    tar = folder / f"{name}.tar"
    data = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(data[:-2000])


def unreadable(folder: Path, name: str) -> None:
    missing(folder, name)
    (folder / f"{name}.tar").mkdir()


def not_of_its_index(folder: Path, name: str) -> None:
    """The index of a shard of as many clips that lie elsewhere."""
    other = write_cache(folder.parent / "other", [EACH], lengths=(6, 300))
    (folder / f"{name}.index.npy").write_bytes((other / "train-000000.index.npy").read_bytes())


def not_of_its_manifest(folder: Path, name: str) -> None:
    """Another shard, and its index, under the name of the first."""
    other = write_cache(folder.parent / "other", [EACH + 1])
    for end in (".tar", ".index.npy"):
        (folder / f"{name}{end}").unlink()
        (folder / f"{name}{end}").write_bytes((other / f"train-000000{end}").read_bytes())


def torn_index(folder: Path, name: str) -> None:
    index = folder / f"{name}.index.npy"
    index.write_bytes(index.read_bytes()[:-40])


def index_of_another(folder: Path, name: str) -> None:
    """As many clips, of other lengths."""
    (folder / f"{name}.index.npy").unlink()
    other = write_cache(folder.parent / "other", [EACH], lengths=(9, 17))
    (folder / f"{name}.index.npy").write_bytes((other / "train-000000.index.npy").read_bytes())


def index_missing(folder: Path, name: str) -> None:
    (folder / f"{name}.index.npy").unlink()


def one_bit_flipped(folder: Path, name: str) -> None:
    tar = folder / f"{name}.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"\x93NUMPY") + 128 + 7] ^= 1  # of a code
    tar.unlink()
    tar.write_bytes(data)


HARMS = [missing, cut_short, unreadable, not_of_its_index, not_of_its_manifest, torn_index, one_bit_flipped]


def streams(folder: Path, bad_share: float, ranks: int = 1, threads: int = 0) -> list[ShardDataLoader]:
    made = []
    for rank in range(ranks):
        split = ShardedDataset(folder, "train", open_shards=2, max_lost_fraction=bad_share)
        order = EpochSampler(split.clips_per_shard, seed=1, shuffle_shards=2)
        made.append(ShardDataLoader([split], order, batch_size=5, rank=rank, world_size=ranks, num_threads=threads))
    return made


def epoch(stream: ShardDataLoader) -> list[Batch]:
    return list(itertools.islice(stream.batches(), SHARDS * EACH // (stream.batch_size * stream.world_size)))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_shard_that_goes_bad_is_stood_in_for(
    tmp_path: Path, harm: Callable[[Path, str], None], threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a run: batches stay full, all other clips come once an epoch, and the loss is told once."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    (stream,) = streams(folder, bad_share=0.06, threads=threads)
    last = stream.sampler(torch.arange(SHARDS * EACH).numpy()).shard[-1]
    batches = stream.batches()
    first = list(itertools.islice(batches, 2))
    harm(folder, f"train-{last:06d}")
    with caplog.at_level(logging.WARNING):
        rest = list(itertools.islice(batches, SHARDS * EACH // 5 - 2))
    seen = Counter(n for batch in first + rest for n in clip_numbers(batch))
    gone = set(range(last * EACH, (last + 1) * EACH))
    assert all(len(batch.frames) == 5 for batch in rest)
    assert set(seen) == set(range(SHARDS * EACH)) - gone and sum(seen.values()) == SHARDS * EACH
    assert sum(n - 1 for n in seen.values()) == len(gone)  # only as many as are lost come twice
    assert stream.lost_clips.count == EACH and stream.lost_clips.shards == [str(folder / f"train-{last:06d}.tar")]
    assert len(caplog.records) == 1 and f"train-{last:06d}" in caplog.text and "its 30 clips" in caplog.text


def test_who_stands_in_depends_on_the_place_alone(tmp_path: Path) -> None:
    """So every rank, and a run that goes on elsewhere, reads the same."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    missing(folder, "train-000003")
    (alone,), pair = streams(folder, 0.1), streams(folder, 0.1, ranks=2)
    ranks = [epoch(stream) for stream in pair]
    together = [n for batches in zip(*ranks, strict=True) for batch in batches for n in clip_numbers(batch)]
    assert together == [n for batch in epoch(alone) for n in clip_numbers(batch)]
    (resumed,) = streams(folder, 0.1)
    assert clip_numbers(next(resumed.batches(300))) == together[300:305]
    assert resumed.clip_keys(torch.arange(300, 305).numpy()) == [f"clip-{n}" for n in together[300:305]]


@pytest.mark.parametrize("harm", [missing, cut_short])
def test_at_the_start_the_same_law_holds(tmp_path: Path, harm: Callable[[Path, str], None]) -> None:
    """What a look at the folder finds is set aside before any work, or refused where that is too much."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    for name in ("train-000003", "train-000007"):
        harm(folder, name)
    (stream,) = streams(folder, bad_share=0.1)
    assert stream.lost_clips.count == 60
    for share, message in (
        (0.09, r"60 of 600 clips are lost, and data.max_lost_fraction=0.09"),
        (0.0, r"train-000003.tar is"),
    ):
        with pytest.raises(InputError, match=message):
            streams(folder, share)


def test_too_many_bad_shards_end_the_run(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    (stream,) = streams(folder, bad_share=0.12, threads=2)
    batches = stream.batches()
    next(batches)
    for n in range(0, SHARDS, 2):
        missing(folder, f"train-{n:06d}")
    with pytest.raises(
        InputError, match=r"is in the manifest but does not exist.*90 of 600 clips.*data.max_lost_fraction=0.12"
    ):
        list(itertools.islice(batches, 120))


def test_validation_leaves_lost_clips_out(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    missing(folder, "train-000003")
    split = ShardedDataset(folder, "train", max_lost_fraction=0.1)
    seen = [n for rank in range(3) for batch in iter_once(split, 7, rank, 3) for n in clip_numbers(batch)]
    assert sorted(seen) == [n for n in range(SHARDS * EACH) if n // EACH != 3]


@pytest.mark.parametrize("harm", [torn_index, index_of_another, index_missing])
def test_all_ranks_come_to_one_order_whatever_is_wrong_with_an_index(
    tmp_path: Path, harm: Callable[[Path, str], None]
) -> None:
    """The shard itself tells how long its clips are, to a machine whose own copy of the index is bad."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS, lengths=(5, 9, 17, 60, 33))
    truth = ShardedDataset(folder, "train").lengths()
    harm(folder, "train-000007")
    split = ShardedDataset(folder, "train", max_lost_fraction=0.05)
    assert (split.lengths() == truth).all() and len(truth) == SHARDS * EACH
    assert set(split.lost_shards) == (set() if harm is index_missing else {7})


@pytest.mark.parametrize("harm", HARMS[:-1])
def test_without_a_shard_its_index_is_enough_and_without_both_there_is_no_order(
    tmp_path: Path, harm: Callable[[Path, str], None]
) -> None:
    """A rank that made up lengths would read other clips than it should, and nobody would know."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS, lengths=(5, 9, 17, 60, 33))
    truth = ShardedDataset(folder, "train").lengths()
    if harm in (missing, cut_short, unreadable):
        harm(folder, "train-000007")
        assert (ShardedDataset(folder, "train", max_lost_fraction=0.05).lengths() == truth).all()
        index_missing(folder, "train-000007")
    else:
        harm(folder, "train-000007")
        missing(folder, "train-000007")
    if harm is not_of_its_index:
        assert not (folder / "train-000007.tar").exists()
    with pytest.raises(InputError, match=r"train-000007.* its index.* is missing or damaged: restore either"):
        ShardedDataset(folder, "train", max_lost_fraction=0.05).lengths()


@pytest.fixture
def open_files() -> Iterator[Callable[[int], None]]:
    """Sets how many files more this process may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more: int) -> None:
        with Path(os.devnull).open() as next_one:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + more, before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_several_caches_ask_for_the_open_files_of_all(tmp_path: Path, open_files: Callable[[int], None]) -> None:
    folder = write_cache(tmp_path / "c", [1] * 150)
    open_files(100)
    splits = [ShardedDataset(folder, "train", open_shards=150) for _ in range(4)]
    held = [split.get_shard(number) for split in splits for number in range(150)]
    assert None not in held


def test_a_limit_of_open_files_is_no_shard_s_fault(tmp_path: Path, open_files: Callable[[int], None]) -> None:
    folder = write_cache(tmp_path / "c", [4] * 12)
    split = ShardedDataset(folder, "train", max_lost_fraction=1.0)
    open_files(5)
    with pytest.raises(
        InputError,
        match=r"train-\d+\.tar cannot be opened.*limit of open files \(`ulimit -n`\).*data\.shuffle_shards",
    ):
        next(iter_once(split, 48))
    assert not split.lost_shards


def test_near_shards_stay_mapped_within_half_of_the_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are asked for, but not at the cost of all else that opens files."""
    folder = write_cache(tmp_path / "c", [1] * 60)
    gc.collect()
    for limit, kept in ((4096, 60), (600, 44), (300, 10)):
        monkeypatch.setattr("pipeline.data.dataset.resource.getrlimit", lambda _, limit=limit: (limit, limit))
        split = ShardedDataset(folder, "train", open_shards=10)
        opened = [split.get_shard(number) for number in range(60)]
        assert all(split.get_shard(number) is opened[number] for number in range(60 - kept, 60))
        assert kept == 60 or split.get_shard(59 - kept) is not opened[59 - kept]
        del split
        gc.collect()


def test_all_clips_lost_is_an_error(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [4])
    (stream,) = streams(folder, bad_share=1.0)
    missing(folder, "train-000000")
    with pytest.raises(InputError, match="cannot be replaced"):
        next(stream.batches())


def test_an_index_whose_sums_wrap_around_reads_no_foreign_memory(tmp_path: Path) -> None:
    """Frames of which K times two bytes are 2^64, in a clip that is not among those looked at when a shard opens."""
    folder = write_cache(tmp_path / "cache", [40])
    file = folder / "train-000000.index.npy"
    index = np.load(file)[1:]  # as older versions wrote it, without checksums
    index[17, 1] = 2**62
    np.save(file, index)
    with pytest.raises(InputError, match="points outside its shard"):
        list(iter_once(ShardedDataset(folder, "train"), 4))


def test_codes_that_are_none_never_reach_the_model(tmp_path: Path) -> None:
    """Of shards without checksums: said with the cache's name, where a GPU would say "device-side assert"."""
    folder = write_cache(tmp_path / "cache", [4])
    split = ShardedDataset(folder, "train")
    assert len(next(iter_once(split, 4)).codes) == 4
    shard = split.get_shard(0)
    assert shard is not None
    (tar,) = folder.glob("train*.tar")
    data = bytearray(tar.read_bytes())
    data[shard.codes_offset(2) + 1] = 0xF0  # the high byte of a clip's first code
    tar.unlink()
    tar.write_bytes(data)
    tar.with_name("train-000000.index.npy").unlink()
    manifest = Manifest.load(folder)
    manifest.splits["train"] = [replace(info, sha256="") for info in manifest.splits["train"]]
    manifest.save(folder)
    with pytest.raises(InputError, match=r"codes above 1023.*pipeline\.shards verify"):
        next(iter_once(ShardedDataset(folder, "train"), 4))
