"""Fuzzing of shards and indices: their readers, training, and the commands that check datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.manifest import Manifest
from pipeline.data.shard import build_index, index_name, iter_samples, read_index
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.caches import CODEC, EMBEDDER, write_cache
from tests.helpers.damage import damaged, inside, mended_tar, refused_or_right, seeds, some

SHARD = "train-000000.tar"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one shard of 12 clips, more than are checked when a shard is opened.

    It has no checksums, as in version 1: otherwise they would reject every damaged file.
    """
    folder = write_cache(tmp_path_factory.mktemp("fuzz") / "cache", [12], (2, 3))
    np.save(folder / index_name(SHARD), np.load(folder / index_name(SHARD))[1:])
    manifest = Manifest.load(folder)
    manifest.splits["train"] = [replace(info, sha256="") for info in manifest.splits["train"]]
    manifest.save(folder)
    return folder


@pytest.fixture(scope="module")
def intact(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@some(150)
@given(seed=seeds)
def test_damaged_shard(intact: dict[str, bytes], seed: int) -> None:
    data = memoryview(mended_tar(seed, damaged(seed, [intact[SHARD][: 3 * 3 * 1024]])))
    with refused_or_right("the shard"):
        for sample in iter_samples(data, build_index(data, "the shard"), "the shard"):
            assert sample.codes.dtype == np.uint16 and sample.codes.ndim == 2
            assert sample.prompt.dtype == np.float16 and sample.prompt.ndim == 1
            assert isinstance(sample.metadata, dict) and sample.key


@some(150)
@given(seed=seeds)
def test_damaged_index(intact: dict[str, bytes], seed: int) -> None:
    with refused_or_right("the"):
        index, _ = read_index(damaged(seed, [intact[index_name(SHARD)]]), "the index")
        assert index.dtype == np.int64 and index.shape[1] == 5
        for sample in iter_samples(memoryview(intact[SHARD]), index, "the shard"):
            assert sample.codes.shape[1] in (2, 3)


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
    """The size of the file stays as the manifest says, so that it does not reveal the damage."""
    data = damaged(seed, [intact[name]])
    data = mended_tar(seed, data) if name == SHARD else data
    (cache / name).write_bytes(data[: len(intact[name])].ljust(len(intact[name]), b"\0"))
    try:
        with inside(cache), refused_or_right(str(cache)):
            READERS[reader](cache)
    finally:
        (cache / name).write_bytes(intact[name])


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
