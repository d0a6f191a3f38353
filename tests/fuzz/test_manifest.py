"""Fuzzing of manifests, plans and records: wrong types, impossible counts, names outside the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given

from pipeline.common.errors import InputError
from pipeline.data import build_state
from pipeline.data.build_state import BuildPlan, PlannedShard, ShardRecord
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from pipeline.evaluation.doctor.checks import find_faults
from pipeline.evaluation.doctor.diagnosis import Diagnosis
from pipeline.evaluation.doctor.examination import ExamineOptions, examine
from tests.helpers.caches import CODEC, write_cache
from tests.helpers.damage import damaged, damaged_json, inside, refused_or_right, seeds, some, text_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cache(tmp_path_factory.mktemp("fuzz") / "cache", [3, 2])
    manifest = Manifest.load(folder)
    manifest.skipped = [{"path": "a.wav", "key": "a", "reason": "empty"}]
    manifest.save(folder)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    del content["sha256"]  # as older versions wrote it: otherwise the checksum would reject every damaged manifest
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    shards = [PlannedShard(shard.name, "train", shard.samples, "00") for shard in manifest.splits["train"]]
    settings = {"codec": manifest.codec, "embedder": manifest.embedder, "data": {}}
    BuildPlan({}, settings, "", shards).save(LocalStorage(folder))
    for shard in manifest.splits["train"]:
        ShardRecord("00", build_state.settings_digest(settings), "", shard).save(LocalStorage(folder), shard.name)
    return folder


def read_all(cache: Path, manifest: Manifest) -> None:
    """Run everything that reads a manifest."""
    manifest.check_codec(CODEC, 2)
    for split in [*manifest.splits][:3]:
        assert manifest.hours(split) >= 0
        opened = ShardedDataset(cache, split)
        assert len(opened.lengths()) == len(opened)
        for batch in iter_once(opened, 4):
            assert batch.codes.shape[1] == manifest.codebooks
    assert all("\n" not in line for line in verify(LocalStorage(cache)))
    assert [*dataset_stats(LocalStorage(cache))]
    data = examine(LocalStorage(cache), ExamineOptions(), lambda _: None)
    diagnosis = Diagnosis(data, find_faults(data))
    assert [*diagnosis.lines()] and json.dumps(diagnosis.to_dict(), allow_nan=False) and diagnosis.to_html()
    assert len([*sample_clips(LocalStorage(cache), manifest, 2, 0)]) <= 2


def write_damaged(cache: Path, name: str, seed: int, as_bytes: bool) -> bytes:
    """Replace a file by a damaged one, and return its original content."""
    whole = (cache / name).read_bytes()
    new = damaged(seed, [whole]) if as_bytes else text_of(damaged_json(seed, json.loads(whole))).encode()
    (cache / name).write_bytes(new)
    return whole


@pytest.mark.parametrize("as_bytes", [False, True], ids=["values", "bytes"])
@some(300)
@given(seed=seeds)
def test_damaged_manifest(cache: Path, as_bytes: bool, seed: int) -> None:
    whole = write_damaged(cache, MANIFEST_NAME, seed, as_bytes)
    try:
        with inside(cache), refused_or_right(str(cache)):
            read_all(cache, Manifest.load(cache))
    finally:
        (cache / MANIFEST_NAME).write_bytes(whole)


@pytest.mark.parametrize("name", [build_state.PLAN, "train-000001.done.json"])
@some(100)
@given(seed=seeds)
def test_damaged_plan_or_record(cache: Path, name: str, seed: int) -> None:
    """A merge removes shards that are not in the plan, but only in the folder of the dataset."""
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    write_damaged(cache, name, seed, as_bytes=seed % 4 == 0)
    try:
        with inside(cache), refused_or_right(str(cache)):
            build_state.merge(LocalStorage(cache))
            Manifest.load(cache)
    finally:
        for file, content in before.items():
            (cache / file).write_bytes(content)


@some(20)
@given(seed=seeds)
def test_damaged_remote_manifest(cache: Path, tmp_path: Path, seed: int) -> None:
    """Names of cached files come from the manifest, but never leave the folder of the cache."""
    import fsspec

    remote = fsspec.filesystem("memory")
    for path in cache.iterdir():
        remote.pipe_file(f"/fuzz/{path.name}", path.read_bytes())
    content = damaged_json(seed, json.loads((cache / MANIFEST_NAME).read_text())["splits"])
    text = text_of({**json.loads((cache / MANIFEST_NAME).read_text()), "splits": content})
    remote.pipe_file(f"/fuzz/{MANIFEST_NAME}", text.encode())
    with inside(tmp_path), refused_or_right("memory://fuzz"):
        split = ShardedDataset(
            "memory://fuzz", "train", shard_cache=LocalShardCache(tmp_path / "copies", 0.01), max_lost_fraction=0.0
        )
        assert sum(len(batch.codes) for batch in iter_once(split, 2)) == len(split)


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", "a\\b.tar", "a\0.tar", ".hidden.tar", "a", "", None])
def test_invalid_shard_names_are_refused(cache: Path, name: object) -> None:
    whole = (cache / MANIFEST_NAME).read_bytes()
    content = json.loads(whole)
    content["splits"]["train"]["shards"][0]["name"] = name
    (cache / MANIFEST_NAME).write_text(json.dumps(content))
    try:
        with pytest.raises(InputError, match=r"manifest\.json is malformed .*is not a valid shard name"):
            Manifest.load(cache)
    finally:
        (cache / MANIFEST_NAME).write_bytes(whole)
