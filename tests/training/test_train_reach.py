"""Training on remote and external shards, with clips of many lengths, has the losses of a local dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.manifest import Manifest
from tests.helpers.http_server import Web
from tests.helpers.training_caches import write_cache
from tests.training.test_train import rows, train_ranks

OVERRIDES = ("trainer.steps=6", "trainer.val_every=3", "data.shuffle_shards=2")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Web]:
    """A dataset of clips of 4 to 30 frames, on a web server."""
    pytest.importorskip("aiohttp")
    write_cache(tmp_path / "cache", clips=120, lengths=(4, 30, 12, 5), per_shard=10)
    with Web(tmp_path / "cache") as server:
        yield server


def hydra_dict(values: dict[str, str | int]) -> str:
    """A dict in the syntax of Hydra."""
    return "{" + ",".join(f"{name}:{value!r}" for name, value in values.items()) + "}"


@pytest.mark.slow
def test_local_remote_and_external_shards_are_the_same(served: Web, tmp_path: Path) -> None:
    local, remote, external = (tmp_path / name for name in ("local", "remote", "external"))
    assert "clips are batched by length" in train_ranks(tmp_path / "cache", local, *OVERRIDES)
    shard_cache = (f"data.cache_dir={tmp_path / 'shard_cache'}", "data.cache_gib=0.1")
    train_ranks(served.address, remote, *OVERRIDES, *shard_cache)
    downloads = {n for name, n in served.requests.items() if name.endswith(".tar")}
    assert downloads == {1}, "two ranks share one cache"
    manifest = Manifest.load(tmp_path / "cache")
    codec = {name: value for name, value in manifest.codec.items() if name not in ("codebooks", "dtype")}
    embedder = {name: value for name, value in manifest.embedder.items() if name != "dim"}
    for path in [*(tmp_path / "cache").glob("*.npy"), tmp_path / "cache" / "manifest.json"]:
        path.unlink()
    identities = f"data.external={{codec:{hydra_dict(codec)},embedder:{hydra_dict(embedder)}}}"
    train_ranks(
        tmp_path / "cache" / "*.tar",
        external,
        *OVERRIDES,
        *shard_cache,
        identities,
        "audio_samples.clips=1",
        "audio_samples.seconds=0.1",
    )
    assert len([*external.glob("audio_samples/step-6/*.wav")]) == 3  # the reconstruction, and two temperatures
    for run in (remote, external):
        for name in ("train/loss", "val/loss"):
            assert rows(run, name) == pytest.approx(rows(local, name), abs=1e-6)
