"""Where metrics go: the run folder's `metrics.jsonl` always, Weights & Biases beside it where it is asked for.

Only the first rank tracks; the others hold a Tracker that does nothing, so callers need not ask. Nothing here stops or
slows training: what goes wrong is logged once, and W&B is talked to from a thread of its own.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import InputError
from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.metrics_file import METRICS, cut_metrics
from pipeline.config.cli import overridden_settings
from pipeline.tracking import wandb_media
from pipeline.tracking.background_worker import BackgroundWorker
from pipeline.tracking.wandb_environment import mode_from_environment, settings_from_environment

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)
_LOSSES = ("train/loss", "val/loss")


class Tracker:
    """Does nothing: the tracker of all ranks but the first."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers at a step."""

    def log_audio(self, step: int, heard: Sequence[tuple[str, wandb_media.Sounds]], rate: int) -> None:
        """Record sounds at a step: for each clip its name, and its wavs [S] of `rate` Hz by what they are."""

    def alert(self, title: str, text: str) -> None:
        """Call for attention."""

    def log_artifact(self, kind: str, place: str | Path) -> None:
        """Record what the run reads (a `cache`) or has made (a `checkpoint`, the `export`), and where it lies."""

    def close(self, code: int = 0) -> None:
        """Flush, and say how the run ended: 0 well, 75 to go on later, else badly."""


class JsonlTracker(Tracker):
    """A row a logged step in `metrics.jsonl`, and sounds as wavs in `audio_samples/step-{n}/`."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the file of a run that goes on at `step`: rows of later steps, lost in a crash, go."""
        self.run, self._broken = run, False
        cut_metrics(run, step)
        self._file = (run / METRICS).open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
        except OSError as error:
            self._lost(error)

    def log_audio(self, step: int, heard: Sequence[tuple[str, wandb_media.Sounds]], rate: int) -> None:
        from pipeline.audio import audio_io

        try:
            for clip, sounds in heard:
                for name, wav in sounds.items():
                    file = f"{clip} {name}.wav".replace("/", "_").replace(" ", "-")
                    audio_io.write(self.run / "audio_samples" / f"step-{step}" / file, wav, rate)
        except (OSError, InputError) as error:
            self._lost(error)

    def alert(self, title: str, text: str) -> None:
        log.warning("%s: %s", title, text)

    def close(self, code: int = 0) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError | InputError) -> None:
        if not self._broken:
            log.warning("%s cannot be written, and training goes on without: %s", self.run, error)
        self._broken = True


class WandbTracker(JsonlTracker):
    """The same to Weights & Biases as well, in one run over all restarts; with alerts of what goes wrong."""

    def __init__(self, run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        super().__init__(run, step)
        self._settings, self._last, self._row_at, self._odd = settings, step, time.monotonic(), False

        def open_session() -> WandbRun:
            from pipeline.tracking.wandb_run import WandbRun

            return WandbRun(run, name, config, settings)

        self._aside = BackgroundWorker(
            "W&B", open_session, settings["queue"], self._watch, settings["stall_alert_seconds"] / 4
        )
        self._aside.submit(lambda session: session.save_sources(), slow=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        row = dict(metrics)
        self._aside.submit(lambda session: session.log(step, row))
        self._last, self._row_at = step, time.monotonic()
        odd = [name for name in metrics if name in _LOSSES and not math.isfinite(row[name])]
        if odd and not self._odd:
            self.alert("The loss is not finite", f"{odd[0]} is {row[odd[0]]} at step {step} of {self.run}")
        self._odd = bool(odd)

    def log_audio(self, step: int, heard: Sequence[tuple[str, wandb_media.Sounds]], rate: int) -> None:
        super().log_audio(step, heard, rate)
        kept = list(heard)
        self._aside.submit(lambda session: session.log_audio(step, kept, rate), slow=True)

    def alert(self, title: str, text: str) -> None:
        super().alert(title, text)
        self._aside.submit(lambda session: session.alert(title, text))

    def log_artifact(self, kind: str, place: str | Path) -> None:
        self._aside.submit(lambda session: session.log_artifact(kind, str(place)), slow=True)

    def close(self, code: int = 0) -> None:
        from pipeline.tracking.wandb_run import kill_service

        super().close(code)
        patience = self._settings["timeout_seconds"] * (
            1 if code == EXIT_REQUEUE else 3
        )  # who asked us to stop will not wait long
        done = self._aside.close(lambda session: session.close(code), patience)
        if not done:
            log.warning("W&B is not done after %d s, and ended; what it has not sent is kept", patience)
        if not done or self._aside.had_errors:  # of a process that has died W&B would print a traceback as we end
            kill_service()
        unsent = [f for f in self.run.glob("wandb/offline-run-*") if not [*f.glob("*.synced")]]
        if unsent or not done:
            online = "" if done else " --include-online"
            log.info("to upload it from where there is a network: wandb sync --yes%s %s", online, self._quoted())

    def _quoted(self) -> str:
        return shlex.quote(str(self.run.absolute() / "wandb"))

    def _watch(self) -> None:
        """Called now and then from the thread aside."""
        silent = time.monotonic() - self._row_at
        if silent > self._settings["stall_alert_seconds"]:
            self._row_at = math.inf  # one alert a stall: the next row sets it back
            self.alert("Training stalls", f"no row for {silent / 60:.0f} minutes after step {self._last} of {self.run}")


def apply_environment(cfg: DictConfig) -> None:
    """Put what W&B's environment variables say into the settings of training that were not typed."""
    if cfg.tracking.name == "wandb":
        cfg.tracking.update(settings_from_environment(overridden_settings()))


def build_tracker(run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Tracker:
    """The tracker that `conf/tracking` asks for, of a run that goes on at `step`."""
    if settings["name"] == "none":
        return JsonlTracker(run, step)
    if mode_from_environment(settings) == "disabled":
        log.info("W&B is off (tracking.mode, WANDB_MODE or WANDB_DISABLED says so): metrics go to %s alone", METRICS)
        return JsonlTracker(run, step)
    return WandbTracker(run, step, name, config, settings)
