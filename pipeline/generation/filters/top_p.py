"""Nucleus sampling. Source: Holtzman et al. 2020, arXiv:1904.09751."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.generation.filters import FILTERS, SamplingFilter

if TYPE_CHECKING:
    from torch import Tensor


@FILTERS.register("top_p")
class TopP(SamplingFilter):
    """Keeps the most likely classes whose probabilities first sum to p."""

    off: ClassVar[object] = 1
    order: ClassVar[int] = 30

    value: Annotated[float, Field(gt=0, le=1)]

    def apply(self, logits: Tensor) -> Tensor:
        """Filter logits [B, K, C]."""
        ranked, order = logits.softmax(-1).sort(-1, descending=True)
        is_removed = ranked.cumsum(-1) - ranked >= self.value
        return logits.masked_fill(is_removed.scatter(-1, order, is_removed), -math.inf)
