"""What a codebook pattern defines: the steps of each codebook."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from pipeline.common.settings import Settings


class CodebookSteps(NamedTuple):
    """The steps of one codebook: its code of frame t is at step `first + stride * t + passes * length`.

    Attributes:
        first: The step of frame 0, if there are no earlier passes.
        stride: The steps from one frame to the next, at least 1.
        passes: The number of passes over the clip that come before this codebook; a pass is `length` steps long, the
            number of frames of the clip.
    """

    first: int = 0
    stride: int = 1
    passes: int = 0


class PatternSettings(Settings):
    """A pattern. Its steps are evenly spaced, so that a codebook's rows of a batch are a slice of all steps."""

    name: str

    @abstractmethod
    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k, of this many codebooks."""

    def steps_before_slide(self, frames: int, num_steps: int) -> int:
        """The number of steps of a full window that are generated before the window slides.

        Args:
            frames: The frames of the window.
            num_steps: The steps of the window.
        """
        return num_steps
