"""Silence: sounds that end too early."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References

QUIET = 1e-3  # -60 dBFS
TAIL = 0.25  # the last part of a clip that is checked


@METRICS.register("silent")
class Silence(Metric):
    """Whether the last quarter of a sound is silent, and that of the codec's reconstruction of its clip is not."""

    title = "silent"
    higher_is_better = False
    is_percent = True
    order = 60

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray:
        """One value per clip."""
        return np.array([*map(falls_silent, sounds.wavs, references.reconstructions.wavs)], float)


def falls_silent(wav: np.ndarray, reference: np.ndarray) -> bool:
    """Whether the last quarter of a sound is silent, and that of a reference of the same length is not."""
    last = max(1, round(len(reference) * TAIL))
    return float(np.abs(wav[-last:]).max()) < QUIET <= float(np.abs(reference[-last:]).max())
