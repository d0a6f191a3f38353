"""Metrics of generated sounds: one file for each. See `METRICS`."""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.evaluation.audio_set import AudioSet as AudioSet
from pipeline.evaluation.audio_set import References as References
from pipeline.evaluation.metrics.base import Metric as Metric

METRICS: Registry[type[Metric]] = Registry("metric", __name__)


def list_metrics() -> dict[str, Metric]:
    """All metrics by name, in the order in which tables show them."""
    return {name: kind() for name, kind in sorted(METRICS.items(), key=lambda item: item[1].order)}
