"""What a run folder says about its run: settings, dataset, model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import InputError, one_line
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.storage import is_remote
from pipeline.evaluation.settings import ReportSettings
from pipeline.generation.loaded_run import LoadedRun


def read_config(run: Path) -> dict[str, Any]:
    """The settings of training. Raises InputError if the run folder has none."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"run={run}: its config.yaml cannot be read ({one_line(error):.300})") from None
    if not isinstance(config, dict):
        raise InputError(f"run={run}: its config.yaml has no settings")
    return config


def training_shards(run: Path) -> str:
    """The folder of the run's training dataset, the first if there are several.

    Raises:
        InputError: The run folder names none, or a remote one, which only the user may name, or one that is not on this
            machine.
    """
    shards = read_config(run).get("shards")
    first = next(iter(shards.values()), None) if isinstance(shards, dict) else shards
    if not first or not isinstance(first, str):
        raise InputError(f"shards=auto: {run}/config.yaml names no dataset; give shards=DIR")
    if is_remote(first):
        raise InputError(
            f"shards=auto: {run}/config.yaml names {first}, a remote dataset: addresses in a run folder are not "
            "opened; if you trust it, give shards=ADDRESS"
        )
    if not (Path(first.removeprefix("file://")) / MANIFEST_NAME).is_file():
        raise InputError(
            f"shards=auto: {run}/config.yaml names {first}, but there is no dataset at this path on this machine (seen "
            f"from {Path.cwd()}); give shards=DIR, a copy of it or another dataset with the same codec and embedder"
        )
    return first


def run_facts(run: LoadedRun, settings: ReportSettings) -> dict[str, str]:
    """The facts at the head of a report, by title."""
    config = run.model.config
    count = sum(p.numel() for p in run.model.parameters())
    return {
        "model": f"{count / 1e6:.1f} M parameters, {config.layers} layers of {config.width}",
        "pattern": f"{config.pattern}, {config.codebooks} codebooks",
        "codec": run.codec.name,
        "embedder": str(run.embedder.identity["name"]),
        "clips": f"{settings.split} of {settings.shards}",
        "export": run.sha256[:16],
    }
