"""W&B artifacts for the inputs and outputs of a run: the dataset, checkpoints, the export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {"cache": "dataset", "checkpoint": "checkpoint", "export": "model"}  # W&B's types


def artifact_metadata(kind: str, path: str, data_dir: Path, include_weights: bool) -> tuple[dict[str, Any], list[Path]]:
    """The metadata of a dataset, checkpoint or export, and the files to upload.

    Args:
        kind: A key of KINDS.
        path: The folder or address.
        data_dir: A folder for a copy of the manifest of a remote dataset.
        include_weights: Whether the weights of an export are uploaded.
    """
    if kind == "cache":
        return _dataset_metadata(path, data_dir)
    folder = Path(path)
    if kind == "checkpoint":
        return _without_long_lists(json.loads((folder / "complete.json").read_text())), [folder / "complete.json"]
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors")) if include_weights else []
    return _without_long_lists(json.loads(config.read_text())), [config, *weights]


def _dataset_metadata(path: str, data_dir: Path) -> tuple[dict[str, Any], list[Path]]:
    from pipeline.data.manifest import MANIFEST_NAME, Manifest
    from pipeline.data.storage import is_remote, open_storage

    store = open_storage(path)
    manifest = Manifest.load(store)
    file = Path(path) / MANIFEST_NAME
    if is_remote(path):
        file = data_dir / MANIFEST_NAME
        data_dir.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.read(MANIFEST_NAME))
    metadata = {"codec": manifest.codec, "embedder": manifest.embedder, "data": _without_long_lists(manifest.data)}
    splits = {name: {"clips": manifest.num_samples(name), "hours": manifest.hours(name)} for name in manifest.splits}
    return {**metadata, "splits": splits, "skipped": len(manifest.skipped)}, [file]


def _without_long_lists(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without lists that are too long to read in W&B."""
    return {name: value for name, value in metadata.items() if not isinstance(value, list) or len(value) <= 16}
