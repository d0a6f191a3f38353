"""The constant schedule: the peak, after the warm-up."""

from pipeline.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("constant")
class Constant(Schedule):
    """A constant learning rate."""

    def decay(self, progress: float) -> float:
        return 1.0
