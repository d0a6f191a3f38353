"""A minimum probability in relation to the top one. Source: Nguyen et al. 2024, arXiv:2407.01082."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pipeline.common.setting_types import Fraction
from pipeline.generation.filters import FILTERS, SamplingFilter

if TYPE_CHECKING:
    from torch import Tensor


@FILTERS.register("min_p")
class MinP(SamplingFilter):
    """Keeps the classes with at least this fraction of the top probability."""

    off: ClassVar[object] = 0
    order: ClassVar[int] = 40

    value: Fraction

    def apply(self, logits: Tensor) -> Tensor:
        """Filter logits [B, K, C]."""
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(self.value), -math.inf)
