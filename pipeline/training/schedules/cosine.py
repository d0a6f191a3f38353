"""The cosine schedule: half a period of a cosine from the peak to the floor."""

import math

from pipeline.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """A learning rate that falls by a cosine."""

    def decay(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
