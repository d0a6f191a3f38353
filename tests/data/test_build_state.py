"""The records of a cache that several parts write at once, none of which waits for another."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline.data import build_state
from pipeline.data.build_state import BuildPlan, PlannedShard, ShardRecord
from pipeline.data.manifest import Manifest
from pipeline.data.storage import LocalStorage, open_storage
from tests.helpers.caches import CODEC, EMBEDDER, write_cache

MADE = {"codec": CODEC, "embedder": EMBEDDER, "data": {}}


def finished(folder: Path) -> list[str]:
    """Three shards with their records and their plan, all but merged; their names."""
    store, shards = LocalStorage(folder), Manifest.load(write_cache(folder, [4, 4, 4])).splits["train"]
    for shard in shards:
        ShardRecord(shard.name, build_state.settings_digest(MADE), "", shard).save(store, shard.name)
    BuildPlan({}, MADE, "", [PlannedShard(shard.name, "train", 4, shard.name) for shard in shards]).save(store)
    (folder / "manifest.json").unlink()
    return [shard.name for shard in shards]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_record_that_is_taken_away_meanwhile_is_none(kind: str, tmp_path: Path) -> None:
    """Another part is about to write its shard anew: between the look at the folder and the reading of its records."""
    first, second, third = finished(tmp_path / "c")
    store = open_storage(tmp_path / "c")
    if kind == "memory":
        there = open_storage(f"memory://{uuid.uuid4().hex}")
        for name in store.sizes():
            with there.open_atomic(name) as file:
                file.write(store.read(name))
        store = there
    sizes = store.sizes()
    assert list(build_state.load_records(store, sizes)) == [first, second, third]
    build_state.delete_record(store, second)
    assert list(build_state.load_records(store, sizes)) == [first, third]
    assert build_state.merge(store) == [second]


def test_merging_spares_what_another_part_begins_with(tmp_path: Path) -> None:
    """What the dead left of shards goes; the file by which a part that starts finds that it can write stays."""
    finished(tmp_path)
    dead, starting = tmp_path / ".train-000000.tar.7-ab.partial", tmp_path / ".write-test.8-cd.partial"
    for file in (dead, starting):
        file.touch()
    assert isinstance(build_state.merge(LocalStorage(tmp_path)), Manifest)
    assert not dead.exists() and starting.exists()
