"""Power laws fitted to measurements, with intervals for what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T_QUANTILES = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # Student's t at 97.5 %, by degrees of freedom
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class PowerLaw:
    """y = scale * x ** -exponent, as a line through the logarithms of n points.

    Attributes:
        scale: y where x is 1.
        exponent: How fast y falls.
        deviation: The standard deviation of log y around the line.
        points: log x of the points [n].
    """

    scale: float
    exponent: float
    deviation: float
    points: np.ndarray

    def predict(self, x: float) -> tuple[float, float, float]:
        """y at x, and the bounds of its 95 % prediction interval."""
        n, mean = len(self.points), self.points.mean()
        freedom = n - 2
        quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
        distance = (np.log(x) - mean) ** 2 / np.square(self.points - mean).sum()
        factor = float(np.exp(quantile * self.deviation * np.sqrt(1 + 1 / n + distance)))
        y = self.scale * x**-self.exponent
        return y, y / factor, y * factor


def fit_power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw | None:
    """Fit a power law to three or more points by least squares; None if a value is not positive."""
    x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    assert len(x) >= 3, "two points have no deviation from a line"
    if min(x.min(), y.min()) <= 0:
        return None
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    residuals = np.log(y) - slope * np.log(x) - intercept
    deviation = float(np.sqrt(np.square(residuals).sum() / (len(x) - 2)))
    return PowerLaw(float(np.exp(intercept)), -float(slope), deviation, np.log(x))
