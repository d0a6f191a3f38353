"""Outputs of an evaluation: wavs, `evaluate.json`, and metrics for the run's tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.audio import audio_io
from pipeline.common.errors import redact_all
from pipeline.common.files import write_atomic
from pipeline.evaluation.evaluator import Evaluation

MAX_LOGGED_CLIPS = 16  # clips whose sounds are logged


class AudioTracker(Protocol):
    """The part of a tracker that an evaluation needs."""

    def log(self, step: int, metrics: Mapping[str, float], /) -> None:
        """Log metrics at a step."""

    def log_audio(self, step: int, clips: Sequence[tuple[str, Mapping[str, np.ndarray]]], rate: int, /) -> None:
        """Log sounds at a step."""


def write_evaluation(evaluation: Evaluation, out: Path, rate: int) -> None:
    """Write {clip}.{audio set}.wav for every clip and audio set, then evaluate.json."""
    for audio in evaluation.audio_sets:
        for clip, wav in zip(evaluation.clips, audio.wavs, strict=True):
            audio_io.write(out / f"{clip.sample.key}.{audio.name}.wav", wav, rate)
    write_json(out / "evaluate.json", evaluation.result.to_dict())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write results atomically as JSON, without secrets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(redact_all(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def log_evaluation(tracker: AudioTracker, step: int, evaluation: Evaluation, rate: int) -> None:
    """Log all metrics as `eval/...`, and the sounds of the first clips."""
    tracker.log(step, {f"eval/{name}": value for name, value in evaluation.result.flatten().items()})
    sounds = [
        (clip.sample.key, {audio.name: audio.wavs[i] for audio in evaluation.audio_sets})
        for i, clip in enumerate(evaluation.clips[:MAX_LOGGED_CLIPS])
    ]
    tracker.log_audio(step, sounds, rate)
