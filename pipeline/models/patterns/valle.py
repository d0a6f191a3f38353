"""The first codebook of all frames, then the other codebooks. Source: Wang et al. 2023 (Vall-E, arXiv:2301.02111)."""

from __future__ import annotations

from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, PatternSettings


@PATTERNS.register("valle")
class Valle(PatternSettings):
    """Code 0 of frame t is at step t, and the codes k > 0 are at step T + t: 2 T steps.

    0: 0 1 2 3 . . . .
    1: . . . . 0 1 2 3
    2: . . . . 0 1 2 3
    """

    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k."""
        return CodebookSteps(passes=min(k, 1))
