"""Trackers of metrics: `metrics.jsonl` in the run folder, and Weights & Biases where it is turned on.

Only the first rank tracks. The other ranks have a `Tracker` that does nothing, so callers need no condition. Tracking
never stops or slows training: each kind of error is logged once, and a background thread talks to W&B.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import InputError
from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.metrics_file import METRICS, cut_metrics
from pipeline.tracking.background_worker import BackgroundWorker
from pipeline.tracking.wandb_environment import mode_from_environment, settings_from_environment

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.tracking.wandb_media import NamedAudio
    from pipeline.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)
_LOSSES = ("train/loss", "val/loss")


class Tracker:
    """The interface of trackers. This one records nothing: it is used on all ranks except the first."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step."""

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        """Record audio at a step. clips: the name of each clip, and its wavs [S] of `rate` Hz by their names."""

    def alert(self, title: str, text: str) -> None:
        """Log a warning, and notify the user where the tracker can."""

    def log_artifact(self, kind: str, path: str | Path) -> None:
        """Record the path of an input (kind `cache`) or output (`checkpoint`, `export`) of the run."""

    def close(self, code: int = 0) -> None:
        """Flush, and record the exit code: 0 for success, EXIT_REQUEUE for a run that will be resumed."""


class JsonlTracker(Tracker):
    """Writes a row for each logged step to `metrics.jsonl`, and audio to wavs in `audio_samples/step-{n}/`."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the file of a run that starts or resumes at `step`; rows of later steps are removed."""
        self.run, self._has_failed = run, False
        cut_metrics(run, step)
        self._file = (run / METRICS).open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
        except OSError as error:
            self._warn_once(error)

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        from pipeline.audio import audio_io

        try:
            for clip, wavs in clips:
                for name, wav in wavs.items():
                    file = f"{clip} {name}.wav".replace("/", "_").replace(" ", "-")
                    audio_io.write(self.run / "audio_samples" / f"step-{step}" / file, wav, rate)
        except (OSError, InputError) as error:
            self._warn_once(error)

    def alert(self, title: str, text: str) -> None:
        log.warning("%s: %s", title, text)

    def close(self, code: int = 0) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._warn_once(error)

    def _warn_once(self, error: OSError | InputError) -> None:
        if not self._has_failed:
            log.warning("%s cannot be written, training continues: %s", self.run, error)
        self._has_failed = True


class WandbTracker(JsonlTracker):
    """Also sends everything to one W&B run, which restarts continue, with alerts for failures."""

    def __init__(self, run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        super().__init__(run, step)
        self._settings, self._last_step, self._last_row_time = settings, step, time.monotonic()
        self._was_nonfinite = False

        def open_run() -> WandbRun:
            from pipeline.tracking.wandb_run import WandbRun

            return WandbRun(run, name, config, settings)

        self._worker = BackgroundWorker(
            "W&B", open_run, settings["queue"], self._check_stall, settings["stall_alert_seconds"] / 4
        )
        self._worker.submit(lambda wandb_run: wandb_run.save_sources(), slow=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        row = dict(metrics)
        self._worker.submit(lambda wandb_run: wandb_run.log(step, row))
        self._last_step, self._last_row_time = step, time.monotonic()
        nonfinite = [name for name in metrics if name in _LOSSES and not math.isfinite(row[name])]
        if nonfinite and not self._was_nonfinite:
            name = nonfinite[0]
            self.alert("The loss is not finite", f"{name} is {row[name]} at step {step} of {self.run}")
        self._was_nonfinite = bool(nonfinite)

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        super().log_audio(step, clips, rate)
        queued = list(clips)
        self._worker.submit(lambda wandb_run: wandb_run.log_audio(step, queued, rate), slow=True)

    def alert(self, title: str, text: str) -> None:
        super().alert(title, text)
        self._worker.submit(lambda wandb_run: wandb_run.alert(title, text))

    def log_artifact(self, kind: str, path: str | Path) -> None:
        self._worker.submit(lambda wandb_run: wandb_run.log_artifact(kind, str(path)), slow=True)

    def close(self, code: int = 0) -> None:
        from pipeline.tracking.wandb_run import kill_service

        super().close(code)
        is_requeue = code == EXIT_REQUEUE  # a job that must stop has little time
        timeout = self._settings["timeout_seconds"] * (1 if is_requeue else 3)
        done = self._worker.close(lambda wandb_run: wandb_run.close(code), timeout)
        if not done:
            log.warning("W&B was stopped after %d s; what it has not sent is kept in the run folder", timeout)
        if not done or self._worker.had_errors:  # else W&B prints a traceback when this process exits
            kill_service()
        unsent = [f for f in self.run.glob("wandb/offline-run-*") if not [*f.glob("*.synced")]]
        if unsent or not done:
            folder = shlex.quote(str(self.run.absolute() / "wandb"))
            online = "" if done else " --include-online"
            log.info("to upload it from a machine with a network: wandb sync --yes%s %s", online, folder)

    def _check_stall(self) -> None:
        """Send an alert if no row was logged for a long time. The background thread calls this regularly."""
        seconds = time.monotonic() - self._last_row_time
        if seconds > self._settings["stall_alert_seconds"]:
            self._last_row_time = math.inf  # one alert per stall: the next row resets it
            text = f"no row for {seconds / 60:.0f} minutes after step {self._last_step} of {self.run}"
            self.alert("Training stalls", text)


def apply_environment(cfg: DictConfig, overridden: Collection[str]) -> None:
    """Set the settings of W&B from its environment variables, except those on the command line.

    Args:
        cfg: The settings of training, which are changed.
        overridden: The dotted names of the settings on the command line.
    """
    if cfg.tracking.name == "wandb":
        cfg.tracking.update(settings_from_environment(overridden))


def build_tracker(run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Tracker:
    """The tracker that the settings of `conf/tracking` describe.

    Args:
        run: The run folder.
        step: The step at which the run starts or resumes.
        name: The name of the experiment, by which W&B groups runs.
        config: All settings of the run, which W&B shows.
        settings: Those of `tracking`.
    """
    if settings["name"] == "none":
        return JsonlTracker(run, step)
    if mode_from_environment(settings) == "disabled":
        log.info("W&B is off (by tracking.mode, WANDB_MODE or WANDB_DISABLED): metrics go to %s only", METRICS)
        return JsonlTracker(run, step)
    return WandbTracker(run, step, name, config, settings)
