"""Labels of clips beside their codes: read with each shard, the right value for each clip, in any order of reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.data.dataloader import Batch, ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler, MixtureSampler
from pipeline.data.shard import Sample, ShardWriter
from tests.helpers.caches import CODEC, EMBEDDER, K, P, clip_numbers, write_cache

LABELED = ("number", "name", "tags")


def write_labeled(folder: Path, shards: list[int]) -> Path:
    """Clips whose labels have their number, except every fifth, which has no labels."""
    folder.mkdir()
    infos, number = [], 0
    for s, n in enumerate(shards):
        with ShardWriter(folder, f"train-{s:06d}.tar") as shard:
            for i in range(number, number + n):
                labels = {"number": i, "name": f"clip {i}", "tags": [f"a{i}", "b"]} if i % 5 else {}
                metadata = {"split": "train", "labels": labels}
                shard.add(Sample(f"clip-{i}", np.zeros((K, 4 + i % 3), "<u2"), np.full(P, i, "<f2"), metadata))
        infos.append(shard.info)
        number += n
    Manifest(CODEC, EMBEDDER, {}, {"train": infos}).save(folder)
    return folder


def check(batch: Batch) -> int:
    """Every clip has its own labels; the number of clips."""
    expected = [i if i % 5 else None for i in clip_numbers(batch)]
    assert batch.labels["number"] == expected
    assert batch.labels["name"] == [None if i is None else f"clip {i}" for i in expected]
    assert batch.labels["tags"] == [None if i is None else [f"a{i}", "b"] for i in expected]
    return len(expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labeled(tmp_path_factory.mktemp("labels") / "labeled", [7, 9, 5])


@pytest.mark.parametrize("threads", [0, 2])
def test_labels_belong_to_their_clips(folder: Path, threads: int) -> None:
    """In a shuffled stream with crops, and in the order on disk, on two ranks."""
    dataset = ShardedDataset(folder, "train")
    dataset.labels = LABELED
    sampler = EpochSampler(dataset.clips_per_shard, seed=1)
    loader = ShardDataLoader([dataset], sampler, batch_size=4, max_frames=5, num_threads=threads)
    stream = loader.batches(8)
    assert sum(check(next(stream)) for _ in range(12)) == 48
    assert sum(check(batch) for rank in range(2) for batch in iter_once(dataset, 4, rank, 2)) == 21


def test_labels_are_not_read_unless_requested(folder: Path) -> None:
    assert next(iter_once(ShardedDataset(folder, "train"), 4)).labels == {}


def test_a_dataset_without_a_label_gives_none(folder: Path, tmp_path: Path) -> None:
    datasets = [ShardedDataset(each, "train") for each in (folder, write_cache(tmp_path / "plain", [8]))]
    for dataset in datasets:
        dataset.labels = ("number",)
    samplers = {str(i): EpochSampler(each.clips_per_shard, seed=i) for i, each in enumerate(datasets)}
    loader = ShardDataLoader(datasets, MixtureSampler(samplers, {"0": 1, "1": 1}, 0), batch_size=32, num_threads=0)
    values = next(loader.batches()).labels["number"]
    assert len(values) == 32 and None in values and any(isinstance(value, int) for value in values)


def test_damaged_metadata_is_a_lost_shard(folder: Path, tmp_path: Path) -> None:
    """It is skipped and counted like any other damage, and replaced by other clips."""
    copy = write_labeled(tmp_path / "damaged", [30, 1])
    shard = copy / "train-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b'{"labels"', b'{"labels]'))
    (copy / "train-000001.index.npy").unlink()
    dataset = ShardedDataset(copy, "train", max_lost_fraction=0.1)
    dataset.labels = LABELED
    assert sum(len(batch.frames) for batch in iter_once(dataset, 8)) == 30 and [*dataset.lost_shards] == [1]
    strict = ShardedDataset(copy, "train")
    strict.labels = LABELED
    with pytest.raises(InputError, match="train-000001"):
        list(iter_once(strict, 8))


def test_external_shards_have_vocabularies(folder: Path, tmp_path: Path) -> None:
    codec = {name: value for name, value in CODEC.items() if name not in ("codebooks", "dtype")}
    embedder = {name: value for name, value in EMBEDDER.items() if name != "dim"}
    dataset = ShardedDataset(f"{folder}/train-*.tar", "train", external=ExternalSource(codec, embedder, tmp_path))
    vocabulary = dataset.manifest.labels
    assert {name: label.kind for name, label in vocabulary.items()} == {
        "name": "category", "number": "number", "tags": "tags",
    }  # fmt: skip
    assert (vocabulary["number"].low, vocabulary["number"].high) == (1, 19)
    dataset.labels = LABELED
    assert sum(map(check, iter_once(dataset, 8))) == 21
