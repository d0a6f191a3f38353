"""Temperature, of all codebooks or of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pipeline.common.errors import InputError
from pipeline.common.setting_types import NonNegative
from pipeline.generation.filters import FILTERS, SamplingFilter, Slider

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@FILTERS.register("temperature")
class Temperature(SamplingFilter):
    """Divides the logits; 0 is greedy: the most likely class. One value for all codebooks, or one per codebook."""

    off: ClassVar[object] = 1
    order: ClassVar[int] = 10
    slider: ClassVar[Slider | None] = Slider("Temperature", 2, 0.05, "0: always the most likely code")

    value: NonNegative | list[NonNegative]

    def apply(self, logits: Tensor) -> Tensor:
        """Filter logits [B, K, C]."""
        return self.build(logits.shape[-2], logits.device)(logits)

    def of_codebooks(self, members: range) -> Temperature:
        """The filter of some of the codebooks."""
        if not isinstance(self.value, list):
            return self
        return self.model_copy(update={"value": [self.value[k] for k in members]})

    def build(self, codebooks: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The function of logits.

        Raises:
            InputError: The number of temperatures is not the number of codebooks.
        """
        import torch

        values = self.value if isinstance(self.value, list) else [self.value] * codebooks
        if len(values) != codebooks:
            raise InputError(
                f"sampling.temperature={values}: the model has {codebooks} codebooks; give one value for each"
            )
        divisor = torch.tensor([value or 1 for value in values], dtype=torch.float32, device=device)[:, None]  # [K, 1]
        is_greedy = torch.tensor([value == 0 for value in values], device=device)[:, None]

        def divide(logits: Tensor) -> Tensor:
            scaled = logits / divisor
            if 0 not in values:
                return scaled
            is_top = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, scaled.argmax(-1, keepdim=True), True)
            return scaled.masked_fill(is_greedy & ~is_top, -math.inf)

        return divide
