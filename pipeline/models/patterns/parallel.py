"""All codebooks of a frame in one step."""

from __future__ import annotations

from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, PatternSettings


@PATTERNS.register("parallel")
class Parallel(PatternSettings):
    """Code k of frame t is at step t: T steps.

    0: 0 1 2 3
    1: 0 1 2 3
    2: 0 1 2 3
    """

    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k."""
        return CodebookSteps()
