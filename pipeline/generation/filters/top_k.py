"""The k most likely classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pipeline.common.setting_types import Count
from pipeline.generation.filters import FILTERS, SamplingFilter, Slider

if TYPE_CHECKING:
    from torch import Tensor


@FILTERS.register("top_k")
class TopK(SamplingFilter):
    """Keeps the k most likely classes."""

    off: ClassVar[object] = 0
    order: ClassVar[int] = 20
    slider: ClassVar[Slider | None] = Slider("Top-k", None, 1, "0: all codes")

    value: Count

    def apply(self, logits: Tensor) -> Tensor:
        """Filter logits [B, K, C]."""
        threshold = logits.topk(min(self.value, logits.shape[-1]), -1).values[..., -1:]
        return logits.masked_fill(logits < threshold, -math.inf)
