"""One code per step. Source: Copet et al. 2023 (MusicGen, arXiv:2306.05284)."""

from __future__ import annotations

from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, PatternSettings


@PATTERNS.register("flatten")
class Flatten(PatternSettings):
    """Code k of frame t is at step K * t + k: K * T steps.

    0: 0 . . 1 . . 2 . . 3 . .
    1: . 0 . . 1 . . 2 . . 3 .
    2: . . 0 . . 1 . . 2 . . 3
    """

    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k."""
        return CodebookSteps(first=k, stride=codebooks)
