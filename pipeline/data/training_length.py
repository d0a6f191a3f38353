"""How long to train on a dataset of some size."""

from __future__ import annotations

EPOCHS = 30  # how often each clip is seen in a training of the suggested length
MAX_STEPS = 200_000  # as in the article
MIN_STEPS = 200  # fewer teach nothing


def suggest_steps(clips: int, clips_per_step: int) -> int:
    """The number of optimizer steps in which each clip is seen some tens of times, with two digits."""
    return max(MIN_STEPS, min(MAX_STEPS, round_down(EPOCHS * clips // clips_per_step)))


def round_down(count: int) -> int:
    """A count without digits after its first two."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return count // unit * unit
