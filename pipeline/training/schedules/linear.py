"""The linear schedule: a straight line from the peak to the floor."""

from pipeline.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("linear")
class Linear(Schedule):
    """A learning rate that falls linearly."""

    def decay(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 - progress)
