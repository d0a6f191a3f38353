"""The interface of metrics, and means with confidence intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from pipeline.evaluation.audio_set import AudioSet, References
from pipeline.evaluation.results import MetricValue


class Metric(ABC):
    """A metric of generated sounds. The name under which it is registered is its name in `evaluate.json`.

    A subclass is measured for the generations at each temperature, and for the codec's reconstructions: the ceiling.

    Attributes:
        title: Its title in tables and plots.
        higher_is_better: Whether higher values are better.
        is_percent: Whether the values are fractions that are shown as percentages.
        order: Tables and plots show metrics in ascending order.
    """

    title: ClassVar[str]
    higher_is_better: ClassVar[bool]
    is_percent: ClassVar[bool] = False
    order: ClassVar[int] = 100

    @abstractmethod
    def measure(self, sounds: AudioSet, references: References) -> np.ndarray | float | None:
        """One value per clip, NaN where it has none; or one value for the set; None: not defined.

        The mean of values per clip is shown, with its interval.

        Args:
            sounds: The sounds, one for each reference clip.
            references: The clips, and what else sounds are compared with.
        """

    def measure_floor(self, sounds: AudioSet, references: References) -> np.ndarray | float | None:
        """The metric of sounds that are unrelated to their prompts, like `measure`; None: there is no floor.

        Args:
            sounds: The generations at the first temperature, of two clips or more.
            references: The clips, and what else sounds are compared with.
        """
        return None

    @property
    def heading(self) -> str:
        """The title with the unit and the direction of better values."""
        return f"{self.title}{' (%)' * self.is_percent} {'↑' if self.higher_is_better else '↓'}"

    @property
    def scale(self) -> int:
        """The factor from a value to what is shown."""
        return 100 if self.is_percent else 1

    def format(self, value: MetricValue | None) -> str:
        """A value with its interval, or "-" if it was not measured."""
        return "-" if value is None else value.format(self.is_percent)


def summarize(values: np.ndarray | float, resamples: int, seed: int) -> MetricValue:
    """The mean of one value per clip [N], with its 95 % interval by bootstrap over clips; or the one value.

    NaN values are left out; at least one value must remain.
    """
    if not isinstance(values, np.ndarray):
        return MetricValue(mean=float(values))
    known = values[~np.isnan(values)].astype(np.float64)
    draws = np.random.default_rng(seed).integers(0, len(known), (resamples, len(known)))
    interval = np.quantile(known[draws].mean(1), [0.025, 0.975]).tolist()
    return MetricValue(mean=float(known.mean()), interval=interval, n=len(known))
