"""Sampling filters, one file each: how logits become the distribution from which a code is sampled.

A filter's name is the setting of its value: `sampling.top_k=50`. Filters are applied in their order.

Letters: B clips, K codebooks, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from pipeline.common.registry import Registry
from pipeline.common.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Slider(NamedTuple):
    """How the web page shows a number, from 0 to `maximum`; None: to the size of a codebook. An int step: integers."""

    label: str
    maximum: float | None
    step: float
    info: str


class SamplingFilter(Settings):
    """A filter with its value. A subclass has a field `value`, whose type is that of its setting.

    Attributes:
        off: The value that changes nothing.
        order: Filters of a lower order are applied before it: temperature 10, top_k 20, top_p 30, min_p 40.
        slider: Its slider on the web page; None: it has none, and the page uses the value of the command line.
    """

    off: ClassVar[object]
    order: ClassVar[int]
    slider: ClassVar[Slider | None] = None

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor:
        """Filter logits [B, K, C]. A class that must not be sampled gets -inf; at least one class must be left."""

    def of_codebooks(self, members: range) -> Self:
        """The filter of some of the codebooks; another one only where the value has one number per codebook."""
        return self

    def build(self, codebooks: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The function of logits for a model; by default `apply`.

        On a GPU the function is captured as a CUDA graph: it must not create tensors from numbers, nor read any back.
        """
        return self.apply


FILTERS: Registry[type[SamplingFilter]] = Registry("sampling filter", __name__)
