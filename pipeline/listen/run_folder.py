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
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"run={run}: its config.yaml cannot be read ({why:.300})") from None
    if not isinstance(found, dict):
        raise InputError(f"run={run}: its config.yaml holds no settings")
    return found


def shards(run: Path) -> str:
    """The cache that it was trained on, the first where there are several. Raises InputError where it is not told."""
    found = config(run).get("shards")
    first = next(iter(found.values()), None) if isinstance(found, dict) else found
    if not first or not isinstance(first, str):
        raise InputError(f"shards=auto: {run}/config.yaml names no cache; give shards=DIR")
    return first


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of its log; none where there is no log."""
    path = run / tracking.METRICS
    rows = path.read_text(errors="replace").splitlines() if path.is_file() else []
    found = []
    for row in rows:
        try:
            told = json.loads(row)
        except (ValueError, RecursionError):  # torn by a crash
            continue
        if isinstance(told, dict):
            found.append(told)
    return found


def evaluation(path: Path) -> dict[str, Any] | None:
    """What pipeline.evaluate has written; None where it has not. Raises InputError for anything else."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        found["loss"]["model"]["nats"], found["temperatures"], found["ceiling"], found["settings"]["n"]
        found["export"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"evaluation={path}: not what pipeline.evaluate writes ({error!r:.200})") from None
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
