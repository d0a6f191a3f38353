"""Fuzzing of shards and indices: their readers, training, and the commands that check datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.manifest import Manifest
from pipeline.data.shard import build_index, index_name, iter_samples, parse_index, shard_checksum, write_index
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.caches import CODEC, EMBEDDER, write_cache
from tests.helpers.damage import damaged, inside, mended_tar, refused_or_right, seeds, some
from tests.helpers.shards import open_bytes

SHARD = "train-000000.tar"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one shard of 12 clips, more than are checked when a shard is opened."""
    folder = write_cache(tmp_path_factory.mktemp("fuzz") / "cache", [12], (2, 3))
    manifest = Manifest.load(folder)
    manifest.splits["train"] = [info.model_copy(update={"sha256": ""}) for info in manifest.splits["train"]]
    manifest.save(folder)
    return folder


@pytest.fixture(scope="module")
def intact(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@some(150)
@given(seed=seeds)
def test_damaged_shard(intact: dict[str, bytes], seed: int) -> None:
    data = open_bytes(mended_tar(seed, damaged(seed, [intact[SHARD][: 3 * 3 * 1024]])))
    with refused_or_right("the shard"):
        for sample in iter_samples(data, build_index(data)):
            assert sample.codes.dtype == np.uint16 and sample.codes.ndim == 2
            assert sample.prompt.dtype == np.float16 and sample.prompt.ndim in (1, 2)
            assert isinstance(sample.metadata, dict) and sample.key


@some(150)
@given(seed=seeds)
def test_damaged_index(intact: dict[str, bytes], seed: int) -> None:
    shard = open_bytes(intact[SHARD])
    with refused_or_right("the"):
        parsed = parse_index(damaged(seed, [intact[index_name(SHARD)]]), "the index")
        index = parsed[0] if parsed else build_index(shard)
        assert index.dtype == np.int64 and index.shape[1] == 5
        for sample in iter_samples(shard, index):
            assert sample.codes.shape[1] in (2, 3)


def write_damaged(cache: Path, intact: dict[str, bytes], name: str, seed: int) -> None:
    """Damage the shard or the rows of its index, and correct the checksums, which would reject all of them.

    The size of the shard stays as the manifest says, so that it does not reveal the damage.
    """
    rows, store = np.frombuffer(intact[index_name(SHARD)][128 + 40 :], np.int64), LocalStorage(cache)
    if name == SHARD:
        size = len(intact[name])
        (cache / name).write_bytes(mended_tar(seed, damaged(seed, [intact[name]]))[:size].ljust(size, b"\0"))
    else:
        data = damaged(seed, [rows.tobytes()])
        rows = np.frombuffer(data[: len(data) // 40 * 40], np.int64)
    write_index(store, SHARD, rows.reshape(-1, 5), shard_checksum(store.open(SHARD)))


READERS: dict[str, Callable[[Path], Any]] = {
    "training": lambda folder: [batch.codes.sum() for batch in iter_once(ShardedDataset(folder, "train"), 4)],
    "training on its first codebook": lambda folder: [
        *iter_once(ShardedDataset(folder, "train", 1, max_lost_fraction=1), 4, max_frames=2)
    ],
    "verify": lambda folder: [*verify(LocalStorage(folder))],
    "describe": lambda folder: [*dataset_stats(LocalStorage(folder))],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [SHARD, index_name(SHARD)])
@some(60)
@given(seed=seeds)
def test_damaged_file_of_dataset(cache: Path, intact: dict[str, bytes], name: str, reader: str, seed: int) -> None:
    write_damaged(cache, intact, name, seed)
    try:
        with inside(cache), refused_or_right(str(cache)):
            READERS[reader](cache)
    finally:
        for file, content in intact.items():
            (cache / file).write_bytes(content)


@some(60)
@given(seed=seeds)
def test_damaged_external_shard(cache: Path, intact: dict[str, bytes], seed: int) -> None:
    external = cache.parent / "external"
    external.mkdir(exist_ok=True)
    (external / SHARD).write_bytes(mended_tar(seed, damaged(seed, [intact[SHARD][: 3 * 3 * 1024]])))
    codec = {name: value for name, value in CODEC.items() if name not in ("codebooks", "dtype")}
    source = ExternalSource(
        codec, {name: value for name, value in EMBEDDER.items() if name != "dim"}, cache.parent / "kept"
    )
    with inside(cache.parent), refused_or_right():
        [*iter_once(ShardedDataset(external, "train", external=source), 4)]


def test_intact_dataset_is_read(cache: Path) -> None:
    assert READERS["training"](cache) and Manifest.load(cache).num_samples("train") == 12
