"""What a run is made of and makes: the cache it reads, its checkpoints, its export; as W&B's artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {"cache": "dataset", "checkpoint": "checkpoint", "export": "model"}  # W&B's types


def artifact_metadata(kind: str, place: str, keep: Path, weights: bool) -> tuple[dict[str, Any], list[Path]]:
    """What is worth telling of a cache, a checkpoint or an export, and its files that are worth keeping.

    keep: a folder for the manifest of a cache that lies elsewhere. weights: whether an export's weights are kept too.
    """
    if kind == "cache":
        return _cache(place, keep)
    folder = Path(place)
    if kind == "checkpoint":
        return _numbers(json.loads((folder / "complete.json").read_text())), [folder / "complete.json"]
    config = folder / "config.json"
    return _numbers(json.loads(config.read_text())), [
        config,
        *(sorted(folder.glob("*.safetensors")) if weights else []),
    ]


def _cache(place: str, keep: Path) -> tuple[dict[str, Any], list[Path]]:
    from pipeline.data.manifest import MANIFEST_NAME, Manifest
    from pipeline.data.storage import is_remote, open_storage

    store = open_storage(place)
    manifest = Manifest.load(store)
    file = Path(place) / MANIFEST_NAME
    if is_remote(place):
        file = keep / MANIFEST_NAME
        keep.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.read(MANIFEST_NAME))
    told = {"codec": manifest.codec, "embedder": manifest.embedder, "data": _numbers(manifest.data)}
    splits = {name: {"clips": manifest.num_samples(name), "hours": manifest.hours(name)} for name in manifest.splits}
    return {**told, "splits": splits, "set_aside": len(manifest.skipped)}, [file]


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is too long to read: W&B shows metadata as a list."""
    return {name: value for name, value in found.items() if not isinstance(value, list) or len(value) <= 16}
