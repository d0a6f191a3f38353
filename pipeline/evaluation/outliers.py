"""Outliers: sounds that are far from a reference in a space of embeddings.

Letters: M clips, N sounds, P width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUANTILE = 0.99  # of real clips, which an outlier exceeds
MIN_CALIBRATION = 100  # clips from which the quantile is taken


@dataclass(frozen=True)
class OutlierDetector:
    """The Mahalanobis distance to a reference, with a covariance that is shrunk where there are few clips.

    Attributes:
        mean: [P].
        whitener: [P, P]; the norm of a whitened difference is the distance.
        threshold: The distance that `QUANTILE` of real clips do not exceed; None: there are too few of them.
    """

    mean: np.ndarray
    whitener: np.ndarray
    threshold: float | None = None

    @classmethod
    def fit(cls, embeddings: np.ndarray) -> OutlierDetector:
        """Fit to embeddings [M, P] of clips, M >= 2; without a threshold."""
        covariance = shrunk_covariance(np.asarray(embeddings, np.float64))
        values, vectors = np.linalg.eigh(covariance)
        roots = np.sqrt(values.clip(min=max(values[-1], 1e-12) * 1e-12))
        return cls(np.asarray(embeddings, np.float64).mean(0), vectors / roots)

    @classmethod
    def calibrate(cls, embeddings: np.ndarray, seed: int) -> OutlierDetector:
        """Fit to a random half of embeddings [M, P], M >= 4, and take the threshold from the other half.

        So a real clip of the same kind exceeds the threshold with the probability that its name says.
        """
        order = np.random.default_rng(seed).permutation(len(embeddings))
        fitted, others = (embeddings[half] for half in np.array_split(order, 2))
        detector = cls.fit(fitted)
        if len(others) < MIN_CALIBRATION:
            return detector
        return cls(detector.mean, detector.whitener, float(np.quantile(detector.distances(others), QUANTILE)))

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """The distance of each of embeddings [N, P]: [N]."""
        norms: np.ndarray = np.linalg.norm((embeddings - self.mean) @ self.whitener, axis=1)
        return norms


def shrunk_covariance(embeddings: np.ndarray) -> np.ndarray:
    """The covariance of embeddings [M, P], drawn towards that of a sphere by the factor of Ledoit & Wolf (2004).

    It has full rank also for M < P, and is the empirical covariance for M much larger than P.
    """
    count, width = embeddings.shape
    centered = embeddings - embeddings.mean(0)
    covariance = centered.T @ centered / count
    sphere = np.trace(covariance) / width
    # the squared distances, for each dimension, of the covariance of one clip and of all to the truth and the sphere
    squares = np.square(covariance).sum()
    error = (np.square(np.square(centered).sum(1)).sum() / count - squares) / count
    spread = squares - width * sphere**2
    factor = min(error, spread) / spread if spread > 0 else 1.0
    shrunk: np.ndarray = (1 - factor) * covariance + factor * sphere * np.eye(width)
    return shrunk
