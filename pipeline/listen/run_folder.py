"""What a run folder tells about its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import tracking
from pipeline.errors import InputError
from pipeline.listen.instrument import Instrument


def config(run: Path) -> dict[str, Any]:
    """The settings of training. Raises InputError where they are not there."""
    try:
        found = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"run={run}: its config.yaml cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"run={run}: its config.yaml holds no settings")
    return found


def shards(run: Path) -> str:
    """The cache that it was trained on, the first where there are several. Raises InputError where it is not told."""
    found = config(run).get("shards")
    if not found:
        raise InputError(f"shards=auto: {run}/config.yaml names no cache; give shards=DIR")
    return found if isinstance(found, str) else next(iter(found.values()))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of its log; none where there is no log."""
    path = run / tracking.METRICS
    rows = path.read_text().splitlines() if path.is_file() else []
    found = []
    for row in rows:
        try:
            found.append(json.loads(row))
        except ValueError:  # torn by a crash
            continue
    return found


def evaluation(path: Path) -> dict[str, Any] | None:
    """What pipeline.evaluate has written; None where it has not. Raises InputError for anything else."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        found["loss"]["model"]["nats"], found["temperatures"], found["ceiling"], found["settings"]["n"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"evaluation={path}: not what pipeline.evaluate writes ({error!r})") from None
    return found


def facts(instrument: Instrument, settings: Mapping[str, Any]) -> dict[str, str]:
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
