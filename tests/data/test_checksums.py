"""Damaged bytes of a dataset are detected when they are read, by the checksums in the index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import shards
from pipeline.common.errors import InputError
from pipeline.data.build_state import BuildPlan, plan_digest
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import index_name
from pipeline.data.shard_cache import LocalShardCache
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.caches import write_cache

FIRST = "train-000000.tar"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", [6, 5])


def flip(file: Path, at: int) -> None:
    """Flip one bit of the byte at an offset."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def codes_at(file: Path, clip: int) -> int:
    """Return the offset of the codes of a clip."""
    return int(np.load(file.with_name(index_name(file.name)))[1 + clip, 0])


def read(folder: str | Path, **options: object) -> int:
    """Return the number of clips of the training split that can be read."""
    return sum(len(batch.frames) for batch in iter_once(ShardedDataset(folder, "train", **options), 4))  # type: ignore[arg-type]


def test_flipped_bit_loses_the_shard(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logged once with its number of clips; refused if no clips may be lost."""
    flip(cache / FIRST, codes_at(cache / FIRST, 3))
    with pytest.raises(InputError, match=rf"{FIRST} has changed since it was written.*checksum differs"):
        read(cache)
    assert read(cache, max_lost_fraction=0.6) == 5
    assert [r.getMessage() for r in caplog.records if "its 6 clips" in r.getMessage() and FIRST in r.getMessage()]


@pytest.mark.parametrize("what", ["older", "missing"])
def test_shard_without_checksummed_index_is_scanned(cache: Path, what: str) -> None:
    """The sha256 of the manifest is compared, and `shards index` writes the current version of the index."""
    index = cache / index_name(FIRST)
    whole = index.read_bytes()
    rows, at = np.load(index)[1:], codes_at(cache / FIRST, 3)
    lengths = ShardedDataset(cache, "train").lengths().tolist()
    index.unlink()
    if what == "older":
        np.save(index, rows)
    assert ShardedDataset(cache, "train").lengths().tolist() == lengths and read(cache) == 11
    assert shards.main.task(["action=index", f"shards='{cache}'"]) == 0  # type: ignore[attr-defined]
    assert index.read_bytes() == whole
    index.unlink()
    if what == "older":
        np.save(index, rows)
    flip(cache / FIRST, at)
    with pytest.raises(InputError, match=rf"{FIRST} has changed since it was written"):
        read(cache)
    with pytest.raises(InputError, match=rf"{FIRST} has changed since it was written .*sha256"):
        shards.main.task(["action=index", f"shards='{cache}'"])  # type: ignore[attr-defined]


def test_damaged_cached_copy_is_downloaded_again(cache: Path, tmp_path: Path) -> None:
    import fsspec

    far = fsspec.filesystem("memory")
    for path in cache.iterdir():
        far.pipe_file(f"/checksums/{path.name}", path.read_bytes())
    copies = tmp_path / "copies"
    assert read("memory://checksums", shard_cache=LocalShardCache(copies, 0.1)) == 11
    for file in copies.glob("*.tar"):
        flip(file, 5000)
    assert read("memory://checksums", shard_cache=LocalShardCache(copies, 0.1)) == 11


def test_damaged_manifest_is_refused(cache: Path) -> None:
    text = (cache / MANIFEST_NAME).read_text()
    (cache / MANIFEST_NAME).write_text(text.replace('"frame_rate": 75', '"frame_rate": 74'))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(its sha256 differs\): run pipeline\.preprocess"):
        Manifest.load(cache)


def test_verify_compares_manifest_with_plan(cache: Path) -> None:
    """A codec or embedder in the manifest that differs from the plan is a fault."""
    manifest, store = Manifest.load(cache), LocalStorage(cache)
    BuildPlan({}, {"codec": manifest.codec, "embedder": manifest.embedder}, "", []).save(store)
    manifest = replace(manifest, plan=plan_digest(store))
    manifest.save(cache)
    assert not [line for line in verify(store) if "plan.json" in line]
    codec, embedder = {**manifest.codec, "weights": "f" * 64}, {**manifest.embedder, "dim": 99}
    replace(manifest, codec=codec, embedder=embedder).save(cache)
    faults = "\n".join(verify(store))
    assert f"manifest.json: codec.weights is '{'f' * 64}', but {manifest.codec['weights']!r} in plan.json" in faults
    assert "manifest.json: embedder.dim is 99, but" in faults
    manifest.save(cache)
    BuildPlan({"seed": 1}, {"codec": manifest.codec, "embedder": manifest.embedder}, "", []).save(store)
    assert "plan.json: it is not the plan that manifest.json was written for" in "\n".join(verify(store))
