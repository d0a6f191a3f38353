"""The Fréchet distance between generated sounds and clips of the dataset."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References


@METRICS.register("distance")
class FrechetDistance(Metric):
    """Between the embeddings of the sounds and of all clips of the split."""

    title = "Fréchet"
    higher_is_better = False
    order = 40

    def measure(self, sounds: AudioSet, references: References) -> float | None:
        """One value for the set, if it has two sounds or more."""
        return frechet_distance(sounds.embeddings, references.embeddings) if len(sounds.wavs) > 1 else None


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of normal distributions fitted to two sets of embeddings, [N, P] and [M, P], N, M >= 2.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017; on audio: Kilgour et al. 2019). Biased upwards
    for few clips: compare only results with the same N. The trace is computed from (A^(1/2) B A^(1/2))^(1/2), which is
    symmetric, so that it is exact also for covariances without full rank.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A) + np.trace(B) - 2 * shared)
