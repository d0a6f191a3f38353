"""Trackers of experiments, by their names: one file each. `metrics.jsonl` is written with any of them."""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.tracking.base import TrackerSettings

TRACKERS = Registry[type[TrackerSettings]]("tracker", __name__)
