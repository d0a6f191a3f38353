"""Weights & Biases: one W&B run for a run folder, over all its restarts."""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.setting_types import PositiveInt, Seconds
from pipeline.tracking.background_worker import BackgroundWorker
from pipeline.tracking.base import NamedAudio, TrackedRun, Tracker, TrackerSettings
from pipeline.tracking.trackers import TRACKERS

if TYPE_CHECKING:
    from pipeline.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)
# W&B's environment variables, which have the same meaning here as in other programs that use W&B
VARIABLES = {
    "entity": "WANDB_ENTITY", "project": "WANDB_PROJECT", "title": "WANDB_NAME", "group": "WANDB_RUN_GROUP",
    "notes": "WANDB_NOTES", "tags": "WANDB_TAGS",
}  # fmt: skip
_OLD_MODES = {"dryrun": "offline", "run": "online"}
_YES = {"1", "true", "yes", "on"}


@TRACKERS.register("wandb")
class WandbSettings(TrackerSettings):
    """Weights & Biases; conf/tracking/wandb.yaml explains each setting."""

    mode: Literal["auto", "online", "offline", "disabled"]
    entity: str | None
    project: str
    title: str | None
    group: str | None
    tags: list[str]
    notes: str | None
    code: bool
    weights: bool
    stall_alert_seconds: Seconds
    timeout_seconds: Seconds
    queue: PositiveInt

    def with_environment(self, overridden: Collection[str]) -> TrackerSettings:
        """These settings, with those of W&B's variables. WANDB_MODE is read at each start instead."""
        values: dict[str, Any] = {
            name: os.environ[variable]
            for name, variable in VARIABLES.items()
            if os.environ.get(variable) and f"tracking.{name}" not in overridden
        }
        if "tags" in values:
            values["tags"] = values["tags"].split(",")
        return self.model_copy(update=values)

    def current_mode(self) -> str:
        """The mode of a run that starts now: a `mode` other than auto has priority over W&B's variables."""
        if self.mode != "auto":
            return self.mode
        if os.environ.get("WANDB_DISABLED", "").lower() in _YES:
            return "disabled"
        mode = os.environ.get("WANDB_MODE") or "auto"
        return _OLD_MODES.get(mode, mode)

    @property
    def is_enabled(self) -> bool:
        """Whether W&B is on at a start now."""
        return self.current_mode() != "disabled"

    def build(self, run: TrackedRun) -> Tracker:
        """The tracker of a run."""
        if not self.is_enabled:
            log.info("W&B is off, by tracking.mode, WANDB_MODE or WANDB_DISABLED")
            return Tracker()
        return WandbTracker(self, run)


class WandbTracker(Tracker):
    """Sends everything to W&B from a background thread, and an alert if training stalls."""

    def __init__(self, settings: WandbSettings, run: TrackedRun) -> None:
        self._settings, self._folder = settings, run.folder
        self._last_step, self._last_row_time = run.step, time.monotonic()

        def open_run() -> WandbRun:
            from pipeline.tracking.wandb_run import WandbRun

            return WandbRun(settings, run)

        idle_seconds = settings.stall_alert_seconds / 4
        self._worker = BackgroundWorker("W&B", open_run, settings.queue, self._check_stall, idle_seconds)
        self._worker.submit(lambda wandb_run: wandb_run.save_sources(), slow=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a row."""
        row = dict(metrics)
        self._worker.submit(lambda wandb_run: wandb_run.log(step, row))
        self._last_step, self._last_row_time = step, time.monotonic()

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        """Queue a table of audio."""
        queued = list(clips)
        self._worker.submit(lambda wandb_run: wandb_run.log_audio(step, queued, rate), slow=True)

    def alert(self, title: str, text: str) -> None:
        """Queue an alert."""
        self._worker.submit(lambda wandb_run: wandb_run.alert(title, text))

    def log_artifact(self, kind: str, path: str | Path) -> None:
        """Queue an artifact."""
        self._worker.submit(lambda wandb_run: wandb_run.log_artifact(kind, str(path)), slow=True)

    def close(self, code: int = 0) -> None:
        """Send what is queued, within `timeout_seconds` before a requeue, and three times as long otherwise."""
        from pipeline.tracking.wandb_run import stop_service

        timeout = self._settings.timeout_seconds * (1 if code == EXIT_REQUEUE else 3)
        done = self._worker.close(lambda wandb_run: wandb_run.close(code), timeout)
        if not done:
            log.warning("W&B was stopped after %d s; what it has not sent is kept in the run folder", timeout)
        if not done or self._worker.had_errors:
            stop_service()
        folder = self._folder.absolute() / "wandb"
        unsent = [run for run in folder.glob("offline-run-*") if not [*run.glob("*.synced")]]
        if unsent or not done:
            online = "" if done else " --include-online"
            command = f"wandb sync --yes{online} {shlex.quote(str(folder))}"
            log.info("to upload it from a machine with a network: %s", command)

    def _check_stall(self) -> None:
        """Send an alert if no row was logged for a long time. The background thread calls this regularly."""
        seconds = time.monotonic() - self._last_row_time
        if seconds > self._settings.stall_alert_seconds:
            self._last_row_time = math.inf  # one alert per stall: the next row resets it
            text = f"no row for {seconds / 60:.0f} minutes after step {self._last_step} of {self._folder}"
            log.warning("Training stalls: %s", text)
            self.alert("Training stalls", text)
