"""What a run folder tells about its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import InputError, one_line
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.storage import is_remote
from pipeline.evaluation.results_file import EvaluationFile
from pipeline.generation.loaded_run import LoadedRun


def read_config(run: Path) -> dict[str, Any]:
    """The settings of training. Raises InputError where they are not there."""
    try:
        found = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = one_line(error)
        raise InputError(f"run={run}: its config.yaml cannot be read ({why:.300})") from None
    if not isinstance(found, dict):
        raise InputError(f"run={run}: its config.yaml holds no settings")
    return found


def training_shards(run: Path) -> str:
    """The cache that it was trained on, the first where there are several.

    Raises InputError where none is named, for a remote one, which only the user may name, and for one that is not on
    this machine.
    """
    found = read_config(run).get("shards")
    first = next(iter(found.values()), None) if isinstance(found, dict) else found
    if not first or not isinstance(first, str):
        raise InputError(f"shards=auto: {run}/config.yaml names no cache; give shards=DIR")
    if is_remote(first):
        raise InputError(
            f"shards=auto: {run}/config.yaml names {first}, a remote cache: addresses in a run folder are not opened; "
            "if you trust it, give shards=ADDRESS"
        )
    if not (Path(first.removeprefix("file://")) / MANIFEST_NAME).is_file():
        raise InputError(
            f"shards=auto: {run}/config.yaml names {first}, where there is no cache on this machine (seen from "
            f"{Path.cwd()}); give shards=DIR, a copy of it or another cache of the same codec and embedder"
        )
    return first


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What pipeline.evaluate has written, checked; None where it has not. Raises InputError for anything else."""
    if not path.is_file():
        return None
    try:
        return EvaluationFile.model_validate_json(path.read_bytes()).model_dump(exclude_none=True)
    except (OSError, ValueError, RecursionError) as error:
        why = one_line(error)
        raise InputError(f"evaluation={path}: not what pipeline.evaluate writes ({why:.200})") from None


def run_facts(instrument: LoadedRun, settings: Mapping[str, Any]) -> dict[str, str]:
    """What stands at the head of a page."""
    model = instrument.model.config
    count = sum(p.numel() for p in instrument.model.parameters())
    return {
        "model": f"{count / 1e6:.1f} M parameters, {model.layers} layers of {model.width}",
        "pattern": f"{model.pattern}, {model.codebooks} codebooks",
        "codec": instrument.codec.name,
        "embedder": str(instrument.embedder.identity["name"]),
        "clips": f"{settings['split']} of {settings['shards']}",
        "export": instrument.sha256[:16],
    }
