"""The metrics that the dashboard shows, for the tests that compare them with what a run logs."""

from __future__ import annotations

import re
from typing import Any

GPU_METRICS = {"memory/gpu_gib", "speed/mfu"}  # not logged on a CPU
WANDB_METRICS = {"_step"}


def read_metrics(specification: Any) -> set[str]:
    """The names of the metrics in a workspace's specification: y axes, x axes and media."""
    if isinstance(specification, list):
        return set().union(*map(read_metrics, specification))
    if not isinstance(specification, dict):
        return set()
    names = set(specification.get("metrics") or []) | set(specification.get("mediaKeys") or [])
    names |= {specification["xAxis"]} if isinstance(specification.get("xAxis"), str) else set()
    return {name for name in names if isinstance(name, str)}.union(*map(read_metrics, specification.values()))


def shown_metrics(codebooks: int) -> set[str]:
    """The metrics of its panels, without those of GPUs, of W&B itself, and the step."""
    from pipeline.tracking import dashboard

    names = read_metrics(dashboard.to_json(dashboard.build_workspace("e", "p", "n", codebooks)))
    plain = {re.sub(r"^summary_metrics\.|\.(min|last)$", "", name) for name in names}
    return plain - GPU_METRICS - WANDB_METRICS - {dashboard.STEP}
