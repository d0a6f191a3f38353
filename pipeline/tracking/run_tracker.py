"""The tracker of a run: files in its folder, which are always written, and the tracker that the settings choose."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.metrics_file import MetricsWriter, read_metrics
from pipeline.common.settings import parse_settings
from pipeline.tracking.base import NamedAudio, TrackedRun, Tracker, TrackerSettings
from pipeline.tracking.trackers import TRACKERS

log = logging.getLogger(__name__)
_LOSSES = ("train/loss", "val/loss")


class RunTracker(Tracker):
    """Writes metrics to `metrics.jsonl` and audio to `audio_samples/step-{n}/`, and passes all to another tracker.

    A disk that refuses a file is logged once, and does not stop training.
    """

    def __init__(self, run: TrackedRun, tracker: Tracker) -> None:
        self._folder, self._tracker = run.folder, tracker
        self._metrics = MetricsWriter(run.folder, run.step)
        self._has_failed = self._was_nonfinite = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a row, and alert at the first of consecutive losses that are not finite."""
        with self._logged_errors():
            self._metrics.write(step, metrics)
        self._tracker.log(step, metrics)
        nonfinite = [name for name in _LOSSES if not math.isfinite(metrics.get(name, 0.0))]
        if nonfinite and not self._was_nonfinite:
            text = f"{nonfinite[0]} is {metrics[nonfinite[0]]} at step {step} of {self._folder}"
            self.alert("The loss is not finite", text)
        self._was_nonfinite = bool(nonfinite)

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        """Write a wav for each sound."""
        from pipeline.audio import audio_io

        with self._logged_errors():
            for clip, wavs in clips:
                for name, wav in wavs.items():
                    file = f"{clip} {name}.wav".replace("/", "_").replace(" ", "-")
                    audio_io.write(self._folder / "audio_samples" / f"step-{step}" / file, wav, rate)
        self._tracker.log_audio(step, clips, rate)

    def alert(self, title: str, text: str) -> None:
        """Log a warning."""
        log.warning("%s: %s", title, text)
        self._tracker.alert(title, text)

    def log_artifact(self, kind: str, path: str | Path) -> None:
        """Pass it to the other tracker: the folder has its own files."""
        self._tracker.log_artifact(kind, path)

    def close(self, code: int = 0) -> None:
        """Close both."""
        with self._logged_errors():
            self._metrics.close()
        self._tracker.close(code)

    @contextlib.contextmanager
    def _logged_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, InputError) as error:
            if not self._has_failed:
                log.warning("%s cannot be written, training continues: %s", self._folder, error)
            self._has_failed = True


def build_tracker(settings: TrackerSettings, run: TrackedRun) -> Tracker:
    """The tracker of a run that starts or resumes: of its folder, and of the settings."""
    return RunTracker(run, settings.build(run))


def find_tracked_run(run: Path, config: Mapping[str, Any]) -> tuple[TrackerSettings, TrackedRun]:
    """The tracker's settings of a finished run, and the run at its last step, for `build_tracker`. Starts no tracker.

    Args:
        run: The run folder.
        config: The settings of training.

    Raises:
        InputError: The training had no tracker, or it is turned off.
    """
    values, rows = config.get("tracking"), read_metrics(run)
    if not isinstance(values, Mapping) or not rows:
        raise InputError(f"wandb=true: {run} was not tracked; train with tracking=wandb")
    settings = parse_settings(TRACKERS.get(str(values.get("name")), "tracking.name"), values, "tracking.")
    if not settings.is_enabled:
        raise InputError(
            f"wandb=true: {run} was trained with tracking={settings.name}, or its tracker is turned off by "
            "tracking.mode, WANDB_MODE or WANDB_DISABLED; train with tracking=wandb, or unset them"
        )
    return settings, TrackedRun(run, max(row["step"] for row in rows), str(config.get("name", run.name)), config)
