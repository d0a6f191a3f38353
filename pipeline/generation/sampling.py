"""How one class is chosen among the logits of a codebook.

Letters: B clips, K codebooks, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import InputError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the classes of a codebook.

    temperature: 0 is greedy; above 0 it divides the logits; one for all codebooks, or one each. top_k: only the k
    likeliest (0: all). top_p: only the likeliest whose probabilities first reach p (1: all). min_p: only those at
    least so likely as a share of the likeliest (0: all). guidance: 1 follows the prompt as trained; above 1 pushes
    away from what the model would do without it (Ho & Salimans 2022, arXiv:2207.12598).
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        each = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not each or not all(0 <= one < math.inf for one in each):
            raise InputError(f"sampling.temperature={self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"sampling.top_k={self.top_k}: give 0 (all classes) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p={self.top_p}: give more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"sampling.min_p={self.min_p}: give 0 (all classes) to 1 (greedy)")
        if not math.isfinite(self.guidance):
            raise InputError(f"sampling.guidance={self.guidance}: give a number; 1 follows the prompt as trained")


def temperature_tensor(samplings: Sequence[SamplingParams], codebooks: int) -> Tensor:
    """The temperature of each row and codebook: float32 [B, K]. Raises InputError where they are not K."""
    rows = []
    for each in (sampling.temperature for sampling in samplings):
        if isinstance(each, tuple) and len(each) != codebooks:
            raise InputError(f"sampling.temperature={list(each)}: the model has {codebooks} codebooks; give one each")
        rows.append(each if isinstance(each, tuple) else (each,) * codebooks)
    return torch.tensor(rows, dtype=torch.float32)


def sample_token(logits: Tensor, noise: Tensor, temperature: Tensor | float, sampling: SamplingParams) -> Tensor:
    """Logits and Gumbel noise [..., C] and temperatures [...] -> classes [...].

    temperature: of each choice, in the place of the sampling's own. A class whose logit is -inf is never chosen.
    """
    temperature = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)[..., None]
    greedy = temperature == 0
    scaled = logits / temperature.masked_fill(greedy, 1)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = scaled.topk(sampling.top_k, -1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = scaled.softmax(-1).sort(-1, descending=True)
        behind = ranked.cumsum(-1) - ranked >= sampling.top_p
        scaled = scaled.masked_fill(behind.scatter(-1, order, behind), -torch.inf)
    if sampling.min_p > 0:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + math.log(sampling.min_p), -torch.inf)
    return (scaled + noise.masked_fill(greedy, 0)).argmax(-1)


def all_finite(logits: Tensor) -> Tensor:
    """Whether all logits [..., C] are numbers that leave something to choose: a bool without dimensions."""
    return logits.amax(-1).isfinite().all()  # the largest of numbers and a NaN is NaN
