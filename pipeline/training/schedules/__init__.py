"""Learning-rate schedules: pure functions of the step, so there is no state to restore.

Each schedule is a file of this package: a class with its settings and its formula.
"""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.common.setting_types import Count, Fraction
from pipeline.common.settings import Settings


class Schedule(Settings):
    """The settings of a schedule. A subclass uses those that it needs, and may have more.

    Attributes:
        warmup: Steps in which the learning rate rises linearly to its peak.
        floor: The learning rate at the last step, as a fraction of its peak.
        parts: Of a sequence.
    """

    name: str
    warmup: Count
    floor: Fraction
    parts: list[dict[str, object]] | None

    def multiplier(self, step: int, steps: int) -> float:
        """The learning rate as a fraction of its peak.

        Args:
            step: 0-based.
            steps: Total number of steps.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.decay(min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))

    def decay(self, progress: float) -> float:
        """The learning rate after the warm-up, as a fraction of its peak; progress: from 0 to 1 at the last step."""
        raise NotImplementedError


SCHEDULES = Registry[type[Schedule]]("schedule", __name__)
