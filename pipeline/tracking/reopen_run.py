"""The tracker of a finished run, to which an evaluation is added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.metrics_file import read_metrics
from pipeline.tracking.base import Tracker, build_tracker
from pipeline.tracking.wandb_environment import mode_from_environment


def reopen_wandb_run(run: Path, config: Mapping[str, Any]) -> tuple[Tracker, int]:
    """A tracker that continues the W&B run of a training, and the last step of its log.

    Args:
        run: The run folder.
        config: The settings of training.

    Raises:
        InputError: The training was not tracked by W&B, or W&B is off.
    """
    settings, rows = config.get("tracking"), read_metrics(run)
    if not isinstance(settings, dict) or settings.get("name") != "wandb" or not rows:
        raise InputError(f"wandb=true: {run} was not tracked by W&B; train with tracking=wandb")
    if mode_from_environment(settings) == "disabled":
        raise InputError("wandb=true: WANDB_MODE, WANDB_DISABLED or the run's tracking.mode turns W&B off: unset it")
    step = max(row["step"] for row in rows)
    return build_tracker(run, step, str(config.get("name", run.name)), config, settings), step
