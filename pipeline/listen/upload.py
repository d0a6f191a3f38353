"""Figures and sounds of an evaluation into the W&B run that training began."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from pipeline import tracking
from pipeline.errors import InputError
from pipeline.listen.evaluation import Evaluation
from pipeline.listen.figures import flat

SHOWN = 16  # clips whose sounds go along


def upload(run: Path, found: Evaluation, rate: int) -> None:
    """Log `eval/...` at the run's last step, with the sounds of the first clips. Raises InputError for no such run."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        rows = (run / tracking.METRICS).read_text().splitlines()
        step = json.loads(rows[-1])["step"]
    except (OSError, ValueError, KeyError, IndexError, yaml.YAMLError) as error:
        raise InputError(f"wandb=true: {run} is no folder of a run that pipeline.train wrote ({error})") from None
    if config["tracking"]["name"] != "wandb":
        raise InputError(f"wandb=true: {run} was not tracked by W&B (tracking={config['tracking']['name']})")
    tracker = tracking.start(run, step, config["name"], config, config["tracking"])
    tracker.log(step, {f"eval/{name}": value for name, value in flat(found.told).items()})
    heard = [
        (clip.sample.key, {spoken.name: spoken.wavs[i] for spoken in found.voices})
        for i, clip in enumerate(found.clips[:SHOWN])
    ]
    tracker.listen(step, heard, rate)
    tracker.finish()
