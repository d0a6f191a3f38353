"""Remote datasets are read like local ones, through a bounded cache that the ranks of a machine share."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.data.bucketing import bucket_by_length
from pipeline.data.dataloader import ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.sampler import EpochSampler
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.storage import LocalStorage, RemoteStorage, open_storage
from tests.helpers.caches import clip_numbers, write_cache
from tests.helpers.http_server import Web

ROOM = 0.1  # GiB


def stream(
    address: str | Path, copies: LocalShardCache | None, window: int = 2, rank: int = 0, ranks: int = 1
) -> ShardDataLoader:
    split = ShardedDataset(address, "train", open_shards=2 * window, shard_cache=copies)
    order = bucket_by_length(EpochSampler(split.clips_per_shard, 1, window), [split.lengths()], 1, max_padding=0.1)
    return ShardDataLoader(
        [split], order, batch_size=5, rank=rank, world_size=ranks, num_threads=2, max_frames=20, seed=3
    )


def read(stream: ShardDataLoader, clips: int, position: int = 0) -> list[tuple[list[int], torch.Tensor]]:
    batches = itertools.islice(stream.batches(position), clips // stream.batch_size)
    return [(clip_numbers(batch), batch.codes) for batch in batches]


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("kind", ["http", "s3", "memory"])
def test_remote_and_local_batches_are_equal(
    kind: str, web: Web, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same batches, with different lengths and crops; each shard is downloaded once."""
    local = write_cache(web.folder, [20] * 6, lengths=(6, 40, 6, 13))
    write_cache(local, [7, 8], split="valid", first=900)
    if kind == "http":
        remote = web.address
    else:
        remote = f"{request.getfixturevalue('bucket')}/{tmp_path.name}" if kind == "s3" else f"memory://{tmp_path.name}"
        store = open_storage(remote)
        for name, _ in LocalStorage(local).sizes().items():
            with store.open_atomic(name) as file:
                file.write((local / name).read_bytes())
    copies = LocalShardCache(tmp_path / "copies", ROOM)
    for near, loader in zip(read(stream(local, None), 240), read(stream(remote, copies), 240), strict=True):
        assert near[0] == loader[0] and torch.equal(near[1], loader[1])
    valid = ShardedDataset(remote, "valid", open_shards=2, shard_cache=copies)
    assert sorted(n for batch in iter_once(valid, 4) for n in clip_numbers(batch)) == list(range(900, 915))
    assert valid.max_frames() == 6 and len(tars(tmp_path / "copies")) == 8
    if kind == "http":
        assert {n for name, n in web.requests.items() if name.endswith(".tar")} == {1}
        again = LocalShardCache(
            tmp_path / "copies", ROOM
        )  # another run of this machine: nothing comes twice but the manifest
        requests = web.requests.copy()
        read(stream(remote, again), 240)
        assert set(web.requests - requests) == {"manifest.json"}


ENDER = """
import sys, time
from pathlib import Path
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.dataset import ShardedDataset
split = ShardedDataset(sys.argv[1], "train", open_shards=4, shard_cache=LocalShardCache(sys.argv[2], 0.1))
split.prefetch(range(18), 0)
while not list(Path(sys.argv[2]).glob("*.coming")):
    time.sleep(0.01)
"""
READER = """
import sys
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.dataset import ShardedDataset
split = ShardedDataset(sys.argv[1], "train", open_shards=4, shard_cache=LocalShardCache(sys.argv[2], 0.1))
split.prefetch(range(18), int(sys.argv[3]))
for shard in range(18):
    print(*[split.clip_key(shard, row).removeprefix("clip-") for row in range(20)], flush=True)
"""


def reader(address: str, folder: Path, rank: int = 0, script: str = READER) -> subprocess.Popen[str]:
    """Start a process that reads the keys of 18 shards of 20 clips, or ends during the downloads."""
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", script, address, str(folder), str(rank)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> list[int]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [int(n) for n in out.split()]


def test_ranks_share_downloads(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [20] * 18)
    web.pause = 0.05  # so that all need the same shards during their downloads
    ranks = [reader(web.address, tmp_path / "copies", rank) for rank in range(3)]
    for process in ranks:
        assert finish(process) == list(range(360))
    assert {name for name, n in web.requests.items() if n > 1} == {"manifest.json"}


def test_waiting_for_a_download_returns_the_shard(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [500])
    (shard,), web.pause = ShardedDataset(web.folder, "train").shards, 0.02
    with ThreadPoolExecutor(4) as pool:
        waiting = [
            pool.submit(LocalShardCache(tmp_path, ROOM).open, open_storage(web.address), shard) for _ in range(4)
        ]
        opened = [future.result(timeout=20) for future in waiting]
    assert len({reader.sha256() for reader, _ in opened}) == 1 and web.requests["train-000000.tar"] == 1


def test_killed_download_starts_again(web: Web, tmp_path: Path) -> None:
    """After kill -9 the next reader starts the interrupted downloads again and keeps complete shards."""
    write_cache(web.folder, [20] * 18)
    folder, web.pause = tmp_path / "copies", 0.2
    process = reader(web.address, folder)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (
        tars(folder) and list(folder.glob("*.coming")) and list(folder.glob("*.data"))
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    whole = {path.stem for path in tars(folder)}
    assert list(folder.glob("*.coming")) and list(folder.glob("*.data"))
    web.pause, requests = 0.0, web.requests.copy()
    assert finish(reader(web.address, folder)) == list(range(360))
    fetched = {name for name in web.requests - requests if name.endswith(".tar")}
    assert not [*folder.glob("*.coming"), *folder.glob("*.data")] and len(fetched) <= 18 - len(whole)


def test_process_ends_without_waiting_for_downloads(web: Web, tmp_path: Path) -> None:
    """The server sends nothing for its prefetches: it ends anyway, without incomplete files."""
    write_cache(web.folder, [20] * 18)
    web.stalled = {file.name for file in tars(web.folder)}
    process = reader(web.address, tmp_path / "copies", script=ENDER)
    try:
        assert finish(process) == []
    finally:
        process.kill()
    assert not [file for file in (tmp_path / "copies").iterdir() if file.suffix in (".coming", ".data", ".tar")]


def test_leftovers_are_removed_on_eviction(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [20] * 4)
    left = tmp_path / "copies" / f"{'0' * 64}-{10**12}.coming"
    left.parent.mkdir()
    left.touch()
    left.with_suffix(".data").write_bytes(b"half a shard")
    read(stream(web.address, LocalShardCache(left.parent, ROOM)), 80)
    assert not list(left.parent.glob("0*")) and len(tars(left.parent)) == 4


def test_cache_size_is_bounded(web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of 24 shards, never more are cached than the limit allows, in two epochs."""
    write_cache(web.folder, [20] * 24)
    size = (web.folder / "train-000000.tar").stat().st_size
    loader = stream(web.address, LocalShardCache(tmp_path / "copies", 8.9 * size / 2**30), window=2)
    seen: list[int] = []
    for batch in itertools.islice(loader.batches(), 2 * 96):
        seen += clip_numbers(batch)
        # shards in two consecutive listings existed at the same time
        assert len({*tars(tmp_path / "copies")} & {*tars(tmp_path / "copies")}) <= 8
    assert sorted(seen) == sorted(2 * [*range(480)]) and not caplog.records


def test_eviction_is_lru_and_keeps_open_shards(web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cache(web.folder, [20] * 8)
    store, shards = open_storage(web.address), ShardedDataset(web.folder, "train").shards
    copies = LocalShardCache(tmp_path / "copies", 4.9 * shards[0].bytes / 2**30)
    copies.reserve(shards, 4, web.address)

    def local() -> list[int]:
        names = {path.stem for path in tars(copies.folder)}
        return [n for n, shard in enumerate(shards) if shard.sha256 in names]

    opened = [copies.open(store, shards[n]) for n in (0, 1)]
    for n in (2, 3, 2, 4):
        copies.open(store, shards[n])
    assert local() == [0, 1, 2, 4]  # 3 was opened before the second opening of 2
    opened += [copies.open(store, shards[n]) for n in (5, 6)]
    assert local() == [0, 1, 5, 6] and not caplog.records
    opened.append(copies.open(store, shards[7]))
    assert local() == [0, 1, 5, 6, 7] and "all in use: more than data.cache_gib" in caplog.text
    for (reader, index), n in zip(opened, (0, 1, 5, 6, 7), strict=True):
        assert reader.read(0, reader.size) == (web.folder / shards[n].name).read_bytes() and len(index) == 20
    opened.clear()
    del reader, index
    copies.open(store, shards[2])
    assert len(local()) == 4 and web.requests["train-000002.tar"] == 2


def test_cache_smaller_than_a_window_is_refused(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [20] * 24)
    copies = LocalShardCache(tmp_path / "copies", 0.0003)
    with pytest.raises(InputError, match=r"data.cache_gib=0.0003 is too little: with 16 shards .* hold 0.00 GiB"):
        stream(web.address, copies, window=4)


def test_broken_connection_is_retried(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [20] * 3)
    web.broken["train-000001.tar"] = 2
    seen = [n for clips, _ in read(stream(web.address, LocalShardCache(tmp_path / "copies", ROOM)), 60) for n in clips]
    assert sorted(seen) == list(range(60)) and web.requests["train-000001.tar"] == 3


def test_bad_remote_shards_are_skipped(web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One is missing, one has other bytes than its manifest says, one download never completes."""
    write_cache(web.folder, [20] * 20)
    (web.folder / "train-000003.tar").unlink()
    damaged = web.folder / "train-000007.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    web.broken["train-000011.tar"] = 1000
    split = ShardedDataset(
        web.address,
        "train",
        open_shards=40,
        max_lost_fraction=0.2,
        shard_cache=LocalShardCache(tmp_path / "copies", ROOM),
    )
    loader = ShardDataLoader([split], EpochSampler(split.clips_per_shard, 0), batch_size=4, num_threads=2)
    with caplog.at_level(logging.WARNING):
        seen = [n for batch in itertools.islice(loader.batches(), 100) for n in clip_numbers(batch)]
    assert set(seen) == {n for n in range(400) if n // 20 not in (3, 7, 11)} and len(seen) == 400
    assert split.num_lost_clips() == 60 and len(caplog.records) == 3
    for message in (
        "train-000003.tar is in the manifest but does not exist",
        "bytes differ (sha256)",
        "cannot be downloaded",
    ):
        assert message in caplog.text


@pytest.mark.parametrize("copied", [False, True])
def test_bad_remote_index_loses_at_most_its_shard(copied: bool, web: Web, tmp_path: Path) -> None:
    """With a cache it loses nothing, since the cache has its own indices; the order is the same."""
    write_cache(web.folder, [20] * 20, lengths=(6, 40, 6, 13))
    truth = ShardedDataset(web.folder, "train").lengths()
    (web.folder / "train-000003.index.npy").unlink()
    (web.folder / "train-000007.index.npy").write_bytes(b"<html>")
    copies = LocalShardCache(tmp_path / "copies", ROOM) if copied else None
    split = ShardedDataset(web.address, "train", open_shards=4, max_lost_fraction=0.05, shard_cache=copies)
    assert (split.lengths() == truth).all() and set(split.lost_shards) == (set() if copied else {7})
    clips = [n for batch in iter_once(split, 50) for n in clip_numbers(batch)]
    assert clips == [n for n in range(400) if copied or n // 20 != 7]


def test_next_window_is_prefetched(web: Web, tmp_path: Path) -> None:
    """While one window is read, the next one is downloaded."""
    write_cache(web.folder, [100] * 12)
    loader = stream(web.address, LocalShardCache(tmp_path / "copies", ROOM), window=3)
    batches = loader.batches()
    next(batches)
    now = {shard for _, shard in loader.sampler.upcoming_shards(torch.arange(300).numpy())}
    assert 6 <= len(now) < 12
    end = time.monotonic() + 30
    while time.monotonic() < end and len(tars(tmp_path / "copies")) < 6:
        time.sleep(0.01)
    fetched = {path.stem for path in tars(tmp_path / "copies")}
    assert len(fetched) >= 6 and fetched <= {loader.datasets[0].shards[n].sha256 for n in now}


def test_cache_folder_must_be_writable(web: Web, tmp_path: Path) -> None:
    write_cache(web.folder, [3])
    (tmp_path / "file").write_bytes(b"")
    copies = LocalShardCache(tmp_path / "file" / "copies", ROOM)
    with pytest.raises(InputError, match="cannot write to"):
        ShardedDataset(web.address, "train", shard_cache=copies)
    ShardedDataset(web.folder, "train", shard_cache=copies)  # which what is near script without


def test_remote_shard_without_cache_is_read_to_memory(web: Web) -> None:
    write_cache(web.folder, [5, 5])
    split = ShardedDataset(web.address, "train")
    assert isinstance(split.store, RemoteStorage)
    assert sorted(n for batch in iter_once(split, 3) for n in clip_numbers(batch)) == list(range(10))


def test_cache_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That user could replace shards."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    LocalShardCache(tmp_path / "tmp" / "copies", 0.01).reserve([], 1, "x")
    uid = os.getuid()
    monkeypatch.setattr("pipeline.data.shard_cache.os.getuid", lambda: uid + 1)
    with pytest.raises(InputError, match=r"data\.cache_dir=.*/tmp/copies belongs to another user"):
        LocalShardCache(tmp_path / "tmp" / "copies", 0.01).reserve([], 1, "x")
    LocalShardCache(tmp_path / "of-the-lab", 0.01).reserve([], 1, "x")
