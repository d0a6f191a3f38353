"""Training on shards from afar and of other people, with clips of many lengths: the losses of a cache at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.manifest import Manifest
from tests.helpers.http_server import Web
from tests.helpers.training_caches import write_cache
from tests.training.test_train import rows, train_ranks

WORDS = ("trainer.steps=6", "trainer.val_every=3", "data.shuffle_shards=2")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Web]:
    """A cache of clips of 4 to 30 frames, and a web server of it."""
    pytest.importorskip("aiohttp")
    write_cache(tmp_path / "cache", clips=120, lengths=(4, 30, 12, 5), per_shard=10)
    with Web(tmp_path / "cache") as server:
        yield server


def words(values: dict[str, str | int]) -> str:
    """A dict as Hydra reads it."""
    return "{" + ",".join(f"{name}:{value!r}" for name, value in values.items()) + "}"


@pytest.mark.slow
def test_near_far_and_foreign_are_one(served: Web, tmp_path: Path) -> None:
    near, far, foreign = (tmp_path / name for name in ("near", "far", "foreign"))
    assert "clips are batched by length" in train_ranks(tmp_path / "cache", near, *WORDS)
    copies = (f"data.cache_dir={tmp_path / 'copies'}", "data.cache_gib=0.1")
    train_ranks(served.address, far, *WORDS, *copies)
    assert {n for name, n in served.asked.items() if name.endswith(".tar")} == {1}  # two ranks, one folder of copies
    manifest = Manifest.load(tmp_path / "cache")
    codec = {name: value for name, value in manifest.codec.items() if name not in ("codebooks", "dtype")}
    embedder = {name: value for name, value in manifest.embedder.items() if name != "dim"}
    for path in [*(tmp_path / "cache").glob("*.npy"), tmp_path / "cache" / "manifest.json"]:
        path.unlink()
    told = f"data.external={{codec:{words(codec)},embedder:{words(embedder)}}}"
    train_ranks(
        tmp_path / "cache" / "*.tar",
        foreign,
        *WORDS,
        *copies,
        told,
        "audio_samples.clips=1",
        "audio_samples.seconds=0.1",
    )
    assert len([*foreign.glob("audio_samples/step-6/*.wav")]) == 3  # the reconstruction, and two temperatures
    for run in (far, foreign):
        for name in ("train/loss", "val/loss"):
            assert rows(run, name) == pytest.approx(rows(near, name), abs=1e-6)
