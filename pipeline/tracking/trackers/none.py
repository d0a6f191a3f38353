"""No tracker: metrics are in `metrics.jsonl` only."""

from __future__ import annotations

from pipeline.tracking.base import TrackedRun, Tracker, TrackerSettings
from pipeline.tracking.trackers import TRACKERS


@TRACKERS.register("none")
class NoTracker(TrackerSettings):
    """Only `metrics.jsonl` in the run folder."""

    @property
    def is_enabled(self) -> bool:
        """False."""
        return False

    def build(self, run: TrackedRun) -> Tracker:
        """A tracker that records nothing."""
        return Tracker()
