"""The kernel distance between generated sounds and clips of the dataset."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References

SCALE = 100  # as published
MAX_MEDIAN_CLIPS = 2000  # of the reference, whose distances give the width of the kernel
_ROWS = 1024  # compared at once


@METRICS.register("kernel_distance")
class KernelDistance(Metric):
    """Between the embeddings of the sounds and of all clips of the split: unbiased, so it may be below 0."""

    title = "KAD"
    higher_is_better = False
    order = 42

    def measure(self, sounds: AudioSet, references: References) -> float | None:
        """One value for the set, if it has two sounds or more."""
        if min(len(sounds.wavs), len(references.embeddings)) < 2:
            return None
        return kernel_distance(sounds.embeddings, references.embeddings)


def kernel_distance(sounds: np.ndarray, reference: np.ndarray) -> float:
    """The kernel audio distance of embeddings [N, P] and [M, P], N, M >= 2 (Chung et al., arXiv:2502.15602).

    It is 100 times the unbiased estimate of the squared maximum mean discrepancy. The kernel is Gaussian; its width is
    the median distance of two different clips of the reference, as in kadtk 1.1.0. It makes no assumption about the
    distributions, and its mean does not depend on N and M.
    """
    sounds, reference = np.asarray(sounds, np.float64), np.asarray(reference, np.float64)
    part = reference[:: -(-len(reference) // MAX_MEDIAN_CLIPS)]
    width = np.median(np.sqrt(_squared_distances(part, part)[np.triu_indices(len(part), 1)]))
    gamma = 1 / (2 * width**2 + 1e-8)
    N, M = len(sounds), len(reference)
    among_sounds = (_kernel_sum(sounds, sounds, gamma) - N) / (N * (N - 1))  # without each sound and itself
    among_reference = (_kernel_sum(reference, reference, gamma) - M) / (M * (M - 1))
    return float(SCALE * (among_sounds + among_reference - 2 * _kernel_sum(sounds, reference, gamma) / (N * M)))


def _kernel_sum(a: np.ndarray, b: np.ndarray, gamma: float) -> float:
    """The sum of the kernel over all pairs of [N, P] and [M, P]."""
    blocks = (a[first : first + _ROWS] for first in range(0, len(a), _ROWS))
    return float(sum(np.exp(-gamma * _squared_distances(block, b)).sum() for block in blocks))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, P], [M, P] -> [N, M]."""
    distances: np.ndarray = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return distances.clip(min=0)
