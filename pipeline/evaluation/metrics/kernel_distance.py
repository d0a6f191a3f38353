"""The kernel distance between generated sounds and clips of the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
        return _fit(references).distance(sounds.embeddings)


@dataclass(frozen=True)
class FittedKernel:
    """The kernel for a reference.

    Attributes:
        reference: Embeddings [M, P], M >= 2.
        gamma: The kernel of a squared distance d is exp(-gamma d).
        mean: The mean kernel of two different clips of the reference.
    """

    reference: np.ndarray
    gamma: float
    mean: float

    @classmethod
    def fit(cls, reference: np.ndarray) -> FittedKernel:
        """Choose the width: the median distance of two different clips of the reference, as in kadtk 1.1.0."""
        reference = np.asarray(reference, np.float64)
        part = reference[:: -(-len(reference) // MAX_MEDIAN_CLIPS)]
        width = np.median(np.sqrt(squared_distances(part, part)[np.triu_indices(len(part), 1)]))
        gamma = float(1 / (2 * width**2 + 1e-8))
        return cls(reference, gamma, _mean_of_pairs(reference, gamma))

    def without(self, rows: np.ndarray) -> FittedKernel:
        """The same kernel for the reference without some of its rows [R]; two or more remain."""
        part, rest = self.reference[rows], np.delete(self.reference, rows, axis=0)
        left_out = 2 * _kernel_sum(part, rest, self.gamma) + _kernel_sum(part, part, self.gamma) - len(part)
        total = self.mean * len(self.reference) * (len(self.reference) - 1)
        return FittedKernel(rest, self.gamma, (total - left_out) / (len(rest) * (len(rest) - 1)))

    def distance(self, embeddings: np.ndarray) -> float:
        """The kernel audio distance to embeddings [N, P], N >= 2 (Chung et al., arXiv:2502.15602).

        It is 100 times the unbiased estimate of the squared maximum mean discrepancy, with a Gaussian kernel. It makes
        no assumption about the distributions, and its mean does not depend on N and M.
        """
        embeddings = np.asarray(embeddings, np.float64)
        between = _kernel_sum(embeddings, self.reference, self.gamma) / (len(embeddings) * len(self.reference))
        return float(SCALE * (_mean_of_pairs(embeddings, self.gamma) + self.mean - 2 * between))


@lru_cache(maxsize=1)
def _fit(references: References) -> FittedKernel:
    """The kernel for the reference, which is the same for all sets of sounds."""
    return FittedKernel.fit(references.embeddings)


def _mean_of_pairs(embeddings: np.ndarray, gamma: float) -> float:
    """The mean kernel of two different rows of [N, P]."""
    count = len(embeddings)
    return (_kernel_sum(embeddings, embeddings, gamma) - count) / (count * (count - 1))


def _kernel_sum(a: np.ndarray, b: np.ndarray, gamma: float) -> float:
    """The sum of the kernel over all pairs of [N, P] and [M, P]."""
    blocks = (a[first : first + _ROWS] for first in range(0, len(a), _ROWS))
    return float(sum(np.exp(-gamma * squared_distances(block, b)).sum() for block in blocks))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, P], [M, P] -> [N, M]."""
    distances: np.ndarray = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return distances.clip(min=0)
