"""Coverage and density: how much of the reference clips a set of sounds covers, and how close to them it stays."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References
from pipeline.evaluation.metrics.kernel_distance import squared_distances

NEIGHBOURS = 5  # k, as published


@METRICS.register("coverage")
class Coverage(Metric):
    """The fraction of the reference clips that are like a sound: 0.97 for other sounds of the same distribution."""

    title = f"coverage, k = {NEIGHBOURS}"
    higher_is_better = True
    is_percent = True
    order = 51

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray | None:
        """One value per clip, of more than `NEIGHBOURS` clips."""
        if len(references.prompts) <= NEIGHBOURS:
            return None
        return neighbourhoods(sounds.embeddings, references.prompts).any(1).astype(float)


@METRICS.register("density")
class Density(Metric):
    """How many reference clips each sound is like, relative to k: 1 for other sounds of the same distribution."""

    title = f"density, k = {NEIGHBOURS}"
    higher_is_better = True
    order = 52

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray | None:
        """One value per sound, of more than `NEIGHBOURS` clips."""
        if len(references.prompts) <= NEIGHBOURS:
            return None
        counts: np.ndarray = neighbourhoods(sounds.embeddings, references.prompts).sum(0)
        return counts / NEIGHBOURS


def neighbourhoods(embeddings: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Which clips of a reference each sound is like: closer to it than its k-th neighbour in the reference.

    The mean of `any(1)` is the coverage, and that of `sum(0)` / k the density (Naeem et al., ICML 2020,
    arXiv:2002.09797).

    Args:
        embeddings: Those of the sounds [N, P].
        reference: Those of the clips [M, P], M > k.

    Returns:
        bool [M, N].
    """
    embeddings, reference = embeddings.astype(np.float64), reference.astype(np.float64)
    between_clips = squared_distances(reference, reference)
    np.fill_diagonal(between_clips, 0)
    radius = np.partition(between_clips, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the first is the clip itself
    is_like: np.ndarray = squared_distances(reference, embeddings) < radius[:, None]
    return is_like
