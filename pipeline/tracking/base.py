"""The interface of trackers, which record the metrics of runs outside of the run folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.settings import Settings

Sounds = Mapping[str, NDArray[np.float32]]  # wavs [S] or [S, 2] by name, such as "prompt" or "temperature 0.7"
NamedAudio = tuple[str, Sounds]  # a clip's name and its sounds


class Tracker:
    """Records the metrics of a run. This one records nothing: it is used where tracking is off."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step. Steps never decrease, but a step may have several calls."""

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        """Record audio at a step. clips: the name of each clip, and its wavs, [S] or [S, 2], of `rate` Hz by name."""

    def alert(self, title: str, text: str) -> None:
        """Notify the user of a problem."""

    def log_artifact(self, kind: str, path: str | Path) -> None:
        """Record the path of an input (kind `cache`) or output (`checkpoint`, `export`) of the run."""

    def close(self, code: int = 0) -> None:
        """Flush, and record the exit code: 0 for success, EXIT_REQUEUE for a run that will be resumed."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked."""

    folder: Path
    step: int  # at which it starts or resumes
    name: str  # of the experiment, which groups runs
    config: Mapping[str, Any]  # all settings of the run, as plain data


class TrackerSettings(Settings):
    """The settings of a tracker, and how to build it.

    A tracker must neither stop nor slow training: it logs its errors instead of raising them, and does slow work in a
    thread (`pipeline.tracking.background_worker`). It is used on the first rank only.
    """

    name: str

    @property
    def is_enabled(self) -> bool:
        """Whether a tracker that is built now records anything."""
        return True

    def with_environment(self, overridden: Collection[str]) -> TrackerSettings:
        """These settings, with those that the tracker's own environment variables set.

        Args:
            overridden: The dotted names of the settings on the command line, which have priority.
        """
        return self

    @abstractmethod
    def build(self, run: TrackedRun) -> Tracker:
        """The tracker of a run; a plain `Tracker` unless `is_enabled`."""
