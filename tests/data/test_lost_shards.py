"""Missing, truncated, unreadable and mismatched shards are skipped, logged once, and their clips replaced."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler
from pipeline.data.shard import shard_checksum, write_index
from pipeline.data.storage import LocalStorage
from tests.helpers.caches import clip_numbers, write_cache

SHARDS, EACH = 20, 30


def missing(folder: Path, name: str) -> None:
    (folder / f"{name}.tar").unlink()


def truncated(folder: Path, name: str) -> None:
    tar = folder / f"{name}.tar"
    data = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(data[:-2000])


def unreadable(folder: Path, name: str) -> None:
    missing(folder, name)
    (folder / f"{name}.tar").mkdir()


def wrong_index(folder: Path, name: str) -> None:
    """Write the index of a shard with as many clips at other offsets."""
    other = write_cache(folder.parent / "other", [EACH], lengths=(6, 300))
    (folder / f"{name}.index.npy").write_bytes((other / "train-000000.index.npy").read_bytes())


def another_shard(folder: Path, name: str) -> None:
    """Write another shard with its index under this name."""
    other = write_cache(folder.parent / "other", [EACH + 1])
    for end in (".tar", ".index.npy"):
        (folder / f"{name}{end}").unlink()
        (folder / f"{name}{end}").write_bytes((other / f"train-000000{end}").read_bytes())


def damaged_index(folder: Path, name: str) -> None:
    index = folder / f"{name}.index.npy"
    index.write_bytes(index.read_bytes()[:-40])


def index_of_another(folder: Path, name: str) -> None:
    """Write an index with as many clips of other lengths."""
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


DAMAGES = [missing, truncated, unreadable, wrong_index, another_shard, damaged_index, one_bit_flipped]


def loaders(folder: Path, max_lost_fraction: float, ranks: int = 1, threads: int = 0) -> list[ShardDataLoader]:
    result = []
    for rank in range(ranks):
        split = ShardedDataset(folder, "train", open_shards=2, max_lost_fraction=max_lost_fraction)
        order = EpochSampler(split.clips_per_shard, seed=1, shuffle_shards=2)
        result.append(ShardDataLoader([split], order, batch_size=5, rank=rank, world_size=ranks, num_threads=threads))
    return result


def epoch(loader: ShardDataLoader) -> list[Batch]:
    return list(itertools.islice(loader.batches(), SHARDS * EACH // (loader.batch_size * loader.world_size)))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("threads", [0, 2])
def test_lost_shard_is_replaced_during_a_run(
    tmp_path: Path, damage: Callable[[Path, str], None], threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches stay full, all other clips come once per epoch, and the loss is logged once."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    (loader,) = loaders(folder, max_lost_fraction=0.06, threads=threads)
    last = loader.sampler(torch.arange(SHARDS * EACH).numpy()).shard[-1]
    batches = loader.batches()
    first = list(itertools.islice(batches, 2))
    damage(folder, f"train-{last:06d}")
    with caplog.at_level(logging.WARNING):
        rest = list(itertools.islice(batches, SHARDS * EACH // 5 - 2))
    seen = Counter(n for batch in first + rest for n in clip_numbers(batch))
    lost = set(range(last * EACH, (last + 1) * EACH))
    assert all(len(batch.frames) == 5 for batch in rest)
    assert set(seen) == set(range(SHARDS * EACH)) - lost and sum(seen.values()) == SHARDS * EACH
    assert sum(n - 1 for n in seen.values()) == len(lost)  # as many clips as are lost come twice
    assert loader.datasets[0].num_lost_clips() == EACH and set(loader.datasets[0].lost_shards) == {last}
    assert len(caplog.records) == 1 and f"train-{last:06d}" in caplog.text and "its 30 clips" in caplog.text


def truncate(folder: Path, shard: int, size: int) -> str:
    """Cut a shard short in its file, which readers have open. Returns its name."""
    name = f"train-{shard:06d}"
    os.truncate(folder / f"{name}.tar", size)
    return name


@pytest.mark.parametrize("size", [0, 40_000])  # of about 100,000 bytes
@pytest.mark.parametrize("threads", [0, 2])
def test_shard_truncated_while_open_is_lost(
    tmp_path: Path, size: int, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """All ranks continue with the other clips, and then read the same as a run that starts without the shard."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    ranks = loaders(folder, 0.06, ranks=2, threads=threads)
    running = [loader.batches() for loader in ranks]
    first = [next(batches) for batches in running]
    lost = clip_numbers(first[0])[0] // EACH
    with caplog.at_level(logging.WARNING):
        name = truncate(folder, lost, size)
        rest = [list(itertools.islice(batches, 100)) for batches in running]
    assert caplog.text.count("shard skipped, with its 30 clips") == 2 and name in caplog.text  # once per rank
    assert all(set(loader.datasets[0].lost_shards) == {lost} for loader in ranks)
    (alone,) = loaders(folder, 0.06)
    expected = list(itertools.islice(alone.batches(SHARDS * EACH), 2 * 41))
    second_epoch = [batch for pair in zip(*(batches[59:] for batches in rest), strict=True) for batch in pair]
    for ours, theirs in zip(second_epoch, expected, strict=True):
        assert clip_numbers(ours) == clip_numbers(theirs) and torch.equal(ours.codes, theirs.codes)


@pytest.mark.parametrize("threads", [0, 2])
def test_shard_truncated_while_open_ends_the_run(tmp_path: Path, threads: int) -> None:
    """Where no clip may be lost, the run ends with one line."""
    folder = write_cache(tmp_path / "c", [EACH] * 2)
    (loader,) = loaders(folder, 0.0, threads=threads)
    batches = loader.batches()
    next(batches)
    name = truncate(folder, 1, 40_000)
    with pytest.raises(InputError, match=rf"{name}\.tar is truncated or was changed: it has 40000 bytes") as caught:
        list(itertools.islice(batches, 24))
    assert "\n" not in str(caught.value)


def test_shard_truncated_during_validation_is_skipped(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    batches = iter_once(ShardedDataset(folder, "train", max_lost_fraction=0.1), 7)
    first = clip_numbers(next(batches))
    truncate(folder, 3, 0)
    seen = first + [n for batch in batches for n in clip_numbers(batch)]
    assert seen == [n for n in range(SHARDS * EACH) if n // EACH != 3]


def test_replacement_depends_on_position_only(tmp_path: Path) -> None:
    """Every rank, and a run that resumes on other ranks, reads the same clips."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    missing(folder, "train-000003")
    (alone,), pair = loaders(folder, 0.1), loaders(folder, 0.1, ranks=2)
    ranks = [epoch(loader) for loader in pair]
    together = [n for batches in zip(*ranks, strict=True) for batch in batches for n in clip_numbers(batch)]
    assert together == [n for batch in epoch(alone) for n in clip_numbers(batch)]
    (resumed,) = loaders(folder, 0.1)
    assert clip_numbers(next(resumed.batches(300))) == together[300:305]
    assert resumed.clip_keys(torch.arange(300, 305).numpy()) == [f"clip-{n}" for n in together[300:305]]


@pytest.mark.parametrize("damage", [missing, truncated])
def test_lost_shards_at_the_start(tmp_path: Path, damage: Callable[[Path, str], None]) -> None:
    """Faults in the listing of the folder are counted before any work, and refused if they are too many."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    for name in ("train-000003", "train-000007"):
        damage(folder, name)
    (loader,) = loaders(folder, max_lost_fraction=0.1)
    assert loader.datasets[0].num_lost_clips() == 60
    for share, message in (
        (0.09, r"60 of 600 clips are lost, and data.max_lost_fraction=0.09"),
        (0.0, r"train-000003.tar is"),
    ):
        with pytest.raises(InputError, match=message):
            loaders(folder, share)


def test_too_many_lost_shards_end_the_run(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    (loader,) = loaders(folder, max_lost_fraction=0.12, threads=2)
    batches = loader.batches()
    next(batches)
    for n in range(0, SHARDS, 2):
        missing(folder, f"train-{n:06d}")
    with pytest.raises(
        InputError, match=r"is in the manifest but does not exist.*90 of 600 clips.*data.max_lost_fraction=0.12"
    ):
        list(itertools.islice(batches, 120))


def test_validation_skips_lost_clips(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS)
    missing(folder, "train-000003")
    split = ShardedDataset(folder, "train", max_lost_fraction=0.1)
    seen = [n for rank in range(3) for batch in iter_once(split, 7, rank, 3) for n in clip_numbers(batch)]
    assert sorted(seen) == [n for n in range(SHARDS * EACH) if n // EACH != 3]


@pytest.mark.parametrize("damage", [damaged_index, index_of_another, index_missing])
def test_order_does_not_depend_on_a_damaged_index(tmp_path: Path, damage: Callable[[Path, str], None]) -> None:
    """A machine with a damaged copy of an index reads the lengths from the shard."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS, lengths=(5, 9, 17, 60, 33))
    truth = ShardedDataset(folder, "train").lengths()
    damage(folder, "train-000007")
    split = ShardedDataset(folder, "train", max_lost_fraction=0.05)
    assert (split.lengths() == truth).all() and len(truth) == SHARDS * EACH
    assert set(split.lost_shards) == (set() if damage is index_missing else {7})


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_lengths_need_a_shard_or_its_index(tmp_path: Path, damage: Callable[[Path, str], None]) -> None:
    """With wrong lengths, a rank would silently read other clips."""
    folder = write_cache(tmp_path / "c", [EACH] * SHARDS, lengths=(5, 9, 17, 60, 33))
    truth = ShardedDataset(folder, "train").lengths()
    if damage in (missing, truncated, unreadable):
        damage(folder, "train-000007")
        assert (ShardedDataset(folder, "train", max_lost_fraction=0.05).lengths() == truth).all()
        index_missing(folder, "train-000007")
    else:
        damage(folder, "train-000007")
        missing(folder, "train-000007")
    if damage is wrong_index:
        assert not (folder / "train-000007.tar").exists()
    with pytest.raises(InputError, match=r"train-000007.* its index.* is missing or damaged: restore either"):
        ShardedDataset(folder, "train", max_lost_fraction=0.05).lengths()


@pytest.fixture
def open_files() -> Iterator[Callable[[int], None]]:
    """Return a function that limits how many more files this process may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more: int) -> None:
        with Path(os.devnull).open() as next_one:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + more, before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_open_file_limit_covers_all_datasets(tmp_path: Path, open_files: Callable[[int], None]) -> None:
    folder = write_cache(tmp_path / "c", [1] * 150)
    open_files(100)
    splits = [ShardedDataset(folder, "train", open_shards=150) for _ in range(4)]
    opened = [split.get_shard(number) for split in splits for number in range(150)]
    assert None not in opened


def test_open_file_limit_loses_no_shard(tmp_path: Path, open_files: Callable[[int], None]) -> None:
    folder = write_cache(tmp_path / "c", [4] * 12)
    split = ShardedDataset(folder, "train", max_lost_fraction=1.0)
    open_files(5)
    with pytest.raises(
        InputError,
        match=r"train-\d+\.tar cannot be opened.*limit of open files \(`ulimit -n`\).*data\.shuffle_shards",
    ):
        next(iter_once(split, 48))
    assert not split.lost_shards


def test_local_shards_use_half_of_the_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shards than requested stay open, but other files can still be opened."""
    folder = write_cache(tmp_path / "c", [1] * 60)
    gc.collect()
    for limit, kept in ((4096, 60), (600, 44), (300, 10)):
        monkeypatch.setattr("pipeline.common.machine.resource.getrlimit", lambda _, limit=limit: (limit, limit))
        split = ShardedDataset(folder, "train", open_shards=10)
        opened = [split.get_shard(number) for number in range(60)]
        assert all(split.get_shard(number) is opened[number] for number in range(60 - kept, 60))
        assert kept == 60 or split.get_shard(59 - kept) is not opened[59 - kept]
        del split
        gc.collect()


def test_losing_all_clips_is_an_error(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "c", [4])
    (loader,) = loaders(folder, max_lost_fraction=1.0)
    missing(folder, "train-000000")
    with pytest.raises(InputError, match="cannot be replaced"):
        next(loader.batches())


def test_overflowing_index_is_refused(tmp_path: Path) -> None:
    """K x frames x 2 bytes is 2^64, in a clip that is not checked when the shard is opened."""
    folder = write_cache(tmp_path / "cache", [40])
    file = folder / "train-000000.index.npy"
    index, store = np.load(file)[1:], LocalStorage(folder)
    index[17, 1] = 2**62
    write_index(store, "train-000000.tar", index, shard_checksum(store.open("train-000000.tar")))
    with pytest.raises(InputError, match="points outside its shard"):
        list(iter_once(ShardedDataset(folder, "train"), 4))


def test_invalid_codes_are_refused(tmp_path: Path) -> None:
    """For shards without checksums, the message names the dataset, and not a failed assertion of the GPU."""
    folder = write_cache(tmp_path / "cache", [4])
    split = ShardedDataset(folder, "train")
    assert len(next(iter_once(split, 4)).codes) == 4
    shard = split.get_shard(0)
    assert shard is not None
    (tar,) = folder.glob("train*.tar")
    data = bytearray(tar.read_bytes())
    data[int(shard.rows[2, 0]) + 1] = 0xF0  # the high byte of a clip's first code
    tar.unlink()
    tar.write_bytes(data)
    tar.with_name("train-000000.index.npy").unlink()
    manifest = Manifest.load(folder)
    manifest.splits["train"] = [info.model_copy(update={"sha256": ""}) for info in manifest.splits["train"]]
    manifest.save(folder)
    with pytest.raises(InputError, match=r"codes above 1023.*pipeline\.shards verify"):
        next(iter_once(ShardedDataset(folder, "train"), 4))
