"""Codebook k is delayed by k steps. Source: Copet et al. 2023 (MusicGen, arXiv:2306.05284)."""

from __future__ import annotations

from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, PatternSettings


@PATTERNS.register("delay")
class Delay(PatternSettings):
    """Code k of frame t is at step t + k: T + K - 1 steps.

    0: 0 1 2 3 . .
    1: . 0 1 2 3 .
    2: . . 0 1 2 3
    """

    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k."""
        return CodebookSteps(first=k)

    def steps_before_slide(self, frames: int, num_steps: int) -> int:
        """The last K - 1 steps only complete frames; the next window has more context for them."""
        return frames
