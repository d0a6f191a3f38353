"""Records of a dataset that several processes write at the same time without waiting for each other."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline.data import build_state
from pipeline.data.build_state import BuildPlan, PlannedShard, ShardRecord
from pipeline.data.manifest import Manifest
from pipeline.data.storage import LocalStorage, open_storage
from tests.helpers.caches import CODEC, EMBEDDER, write_cache

SETTINGS = {"codec": CODEC, "embedder": EMBEDDER, "data": {}}


def write_unmerged(folder: Path) -> list[str]:
    """Write three shards with records and a plan but no manifest, and return their names."""
    store, shards = LocalStorage(folder), Manifest.load(write_cache(folder, [4, 4, 4])).splits["train"]
    for shard in shards:
        ShardRecord(shard.name, build_state.settings_digest(SETTINGS), "", shard).save(store, shard.name)
    BuildPlan({}, SETTINGS, "", [PlannedShard(shard.name, "train", 4, shard.name) for shard in shards]).save(store)
    (folder / "manifest.json").unlink()
    return [shard.name for shard in shards]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_record_deleted_while_reading_is_ignored(kind: str, tmp_path: Path) -> None:
    """Another process deletes it between the listing of the folder and the reading of the records."""
    first, second, third = write_unmerged(tmp_path / "c")
    store = open_storage(tmp_path / "c")
    if kind == "memory":
        remote = open_storage(f"memory://{uuid.uuid4().hex}")
        for name in store.sizes():
            with remote.open_atomic(name) as file:
                file.write(store.read(name))
        store = remote
    sizes = store.sizes()
    assert list(build_state.load_records(store, sizes)) == [first, second, third]
    build_state.delete_record(store, second)
    assert list(build_state.load_records(store, sizes)) == [first, third]
    assert build_state.merge(store) == [second]


def test_merge_keeps_write_tests_of_others(tmp_path: Path) -> None:
    """Incomplete shards of killed processes are removed; the test file of a process that starts is not."""
    write_unmerged(tmp_path)
    dead, starting = tmp_path / ".train-000000.tar.7-ab.partial", tmp_path / ".write-test.8-cd.partial"
    for file in (dead, starting):
        file.touch()
    assert isinstance(build_state.merge(LocalStorage(tmp_path)), Manifest)
    assert not dead.exists() and starting.exists()
