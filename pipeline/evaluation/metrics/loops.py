"""Loops: codes that repeat."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References


@METRICS.register("looping")
class Loops(Metric):
    """Whether the last half of a sound's codes repeats. Codes of steady tones do: compare with the ceiling."""

    title = "loops"
    higher_is_better = False
    is_percent = True
    order = 70

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray:
        """One value per clip."""
        return np.array([is_looping(codes.numpy()) for codes in sounds.codes], float)


def is_looping(codes: np.ndarray) -> bool:
    """Whether the last half of codes [K, T] repeats in all codebooks, with one period of 1..T / 8 frames."""
    half, longest = codes.shape[1] // 2, codes.shape[1] // 8
    return any(np.array_equal(codes[:, -half:], codes[:, -half - p : -p]) for p in range(1, longest + 1))
