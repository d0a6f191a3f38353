"""The Fréchet distance between generated sounds and clips of the dataset, and its limit for infinitely many sounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References

MIN_SOUNDS = 32  # from which the limit is extrapolated
SIZES, SUBSETS = 8, 4  # the sizes of the subsets that the limit is extrapolated from, and the subsets of each size


@METRICS.register("distance")
class FrechetDistance(Metric):
    """Between the embeddings of the sounds and of all clips of the split."""

    title = "Fréchet"
    higher_is_better = False
    order = 40

    def measure(self, sounds: AudioSet, references: References) -> float | None:
        """One value for the set, if it has two sounds or more."""
        return _fit(references).distance(sounds.embeddings) if len(sounds.wavs) > 1 else None


@METRICS.register("distance_limit")
class FrechetDistanceLimit(Metric):
    """The same for infinitely many sounds, extrapolated, so that it does not depend on the number of sounds."""

    title = "Fréchet, n → ∞"
    higher_is_better = False
    order = 41

    def measure(self, sounds: AudioSet, references: References) -> float | None:
        """One value for the set, if it has `MIN_SOUNDS` or more."""
        return _fit(references).distance_limit(sounds.embeddings) if len(sounds.wavs) >= MIN_SOUNDS else None


@dataclass(frozen=True)
class FittedNormal:
    """A normal distribution fitted to embeddings.

    Attributes:
        mean: [P].
        root: The square root of the covariance [P, P].
    """

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray) -> FittedNormal:
        """Fit to embeddings [N, P], N >= 2."""
        embeddings = np.asarray(embeddings, np.float64)
        values, vectors = np.linalg.eigh(np.cov(embeddings, rowvar=False))
        return cls(embeddings.mean(0), (vectors * np.sqrt(values.clip(min=0))) @ vectors.T)

    def distance(self, embeddings: np.ndarray) -> float:
        """The Fréchet distance to embeddings [N, P], N >= 2.

        Biased upwards for few embeddings: compare only results with the same N. It is
        |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017; on audio: Kilgour et al. 2019). The trace
        of (A B)^(1/2) is the sum of the singular values of A^(1/2) X', where B = X' X: exact also without full rank.
        """
        embeddings = np.asarray(embeddings, np.float64)
        mean = embeddings.mean(0)
        centered = (embeddings - mean) / np.sqrt(len(embeddings) - 1)  # X [N, P]
        shared = np.linalg.svd(self.root @ centered.T, compute_uv=False).sum()
        return float(
            np.square(self.mean - mean).sum() + np.square(self.root).sum() + np.square(centered).sum() - 2 * shared
        )

    def distance_limit(self, embeddings: np.ndarray) -> float:
        """The distance extrapolated to infinitely many sounds (Gui et al., arXiv:2311.01616).

        The distances of random subsets of N/4 to N sounds lie about a line over 1 / size, whose value at 0 is the
        limit. embeddings: [N, P], N >= 8.
        """
        subsets = random_subsets(len(embeddings), seed=0)
        distances = [self.distance(embeddings[subset]) for subset in subsets]
        _, limit = np.polyfit([1 / len(subset) for subset in subsets], distances, 1)
        return float(limit)


@lru_cache(maxsize=1)
def _fit(references: References) -> FittedNormal:
    """The distribution of the reference, which is the same for all sets of sounds."""
    return FittedNormal.fit(references.embeddings)


def random_subsets(count: int, seed: int) -> list[np.ndarray]:
    """`SUBSETS` subsets of each of `SIZES` sizes from count / 4 to count, as indices without repetition."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(count / 4, count, SIZES).round().astype(int)
    return [rng.permutation(count)[:size] for size in sizes for _ in range(SUBSETS)]
