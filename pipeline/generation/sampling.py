"""Sampling of a token from the logits of a codebook.

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
    """How tokens are sampled.

    Attributes:
        temperature: Divides the logits; 0 is greedy. One value for all codebooks, or one per codebook.
        top_k: Sample from the k most likely classes; 0: from all.
        top_p: Sample from the most likely classes whose probabilities first sum to p; 1: from all.
        min_p: Sample from the classes with at least this fraction of the top probability; 0: from all.
        guidance: Classifier-free guidance scale (Ho & Salimans 2022, arXiv:2207.12598). 1: no guidance; above 1 moves
            the logits further away from those without a prompt.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        values = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not values or not all(0 <= value < math.inf for value in values):
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
    """The temperature of each row and codebook: float32 [B, K].

    Raises:
        InputError: The number of temperatures is not the number of codebooks.
    """
    rows = []
    for value in (sampling.temperature for sampling in samplings):
        if isinstance(value, tuple) and len(value) != codebooks:
            raise InputError(
                f"sampling.temperature={list(value)}: the model has {codebooks} codebooks; give one value for each"
            )
        rows.append(value if isinstance(value, tuple) else (value,) * codebooks)
    return torch.tensor(rows, dtype=torch.float32)


def sample_token(logits: Tensor, noise: Tensor, temperature: Tensor | float, sampling: SamplingParams) -> Tensor:
    """Sample one class from each set of logits.

    Args:
        logits: [..., C]. A class whose logit is -inf is never sampled.
        noise: Gumbel noise [..., C].
        temperature: [...], used instead of `sampling.temperature`.
        sampling: The filters top_k, top_p and min_p.

    Returns:
        The sampled classes [...].
    """
    temperature = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)[..., None]
    is_greedy = temperature == 0
    scaled = logits / temperature.masked_fill(is_greedy, 1)
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = scaled.topk(sampling.top_k, -1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = scaled.softmax(-1).sort(-1, descending=True)
        is_removed = ranked.cumsum(-1) - ranked >= sampling.top_p
        scaled = scaled.masked_fill(is_removed.scatter(-1, order, is_removed), -torch.inf)
    if sampling.min_p > 0:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + math.log(sampling.min_p), -torch.inf)
    return (scaled + noise.masked_fill(is_greedy, 0)).argmax(-1)


def all_finite(logits: Tensor) -> Tensor:
    """Whether no set of logits [..., C] has a NaN, or an infinite maximum: a bool tensor without dimensions."""
    return logits.amax(-1).isfinite().all()  # the maximum of numbers and NaN is NaN
