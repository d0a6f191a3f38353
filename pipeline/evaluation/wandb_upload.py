"""Figures and sounds of an evaluation into the W&B run that training began."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.common.metrics_file import read_metrics
from pipeline.evaluation import run_folder
from pipeline.evaluation.evaluator import Evaluation
from pipeline.evaluation.metrics import flatten_metrics
from pipeline.tracking import base
from pipeline.tracking.wandb_environment import mode_from_environment

MAX_LOGGED_CLIPS = 16  # clips whose sounds go along


def upload_evaluation(run: Path, found: Evaluation, rate: int) -> None:
    """Log `eval/...` at the run's last step, with the sounds of the first clips. Raises InputError for no such run."""
    config, rows = run_folder.read_config(run), read_metrics(run)
    settings = config.get("tracking")
    if not isinstance(settings, dict) or settings.get("name") != "wandb" or not rows:
        raise InputError(f"wandb=true: {run} was not tracked by W&B; train with tracking=wandb")
    if mode_from_environment(settings) == "disabled":
        raise InputError("wandb=true: WANDB_MODE, WANDB_DISABLED or the run's tracking.mode turns W&B off: unset it")
    step = max(row["step"] for row in rows)
    tracker = base.build_tracker(run, step, str(config.get("name", run.name)), config, settings)
    tracker.log(step, {f"eval/{name}": value for name, value in flatten_metrics(found.results).items()})
    heard = [
        (clip.sample.key, {spoken.name: spoken.wavs[i] for spoken in found.audio_sets})
        for i, clip in enumerate(found.clips[:MAX_LOGGED_CLIPS])
    ]
    tracker.log_audio(step, heard, rate)
    tracker.close()
