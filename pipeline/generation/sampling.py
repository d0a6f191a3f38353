"""Sampling of a token from the logits of a codebook.

Letters: B clips, K codebooks, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def sample_token(logits: Tensor, noise: Tensor, filters: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Sample one class from each set of logits.

    Args:
        logits: [B, K, C]. A class whose logit is -inf is never sampled.
        noise: Gumbel noise [B, K, C].
        filters: Functions of the logits, in their order; see `SamplingSettings.build_filters`.

    Returns:
        The sampled classes [B, K].
    """
    for apply in filters:
        logits = apply(logits)
    return (logits + noise).argmax(-1)


def all_finite(logits: Tensor) -> Tensor:
    """Whether no set of logits [..., C] has a NaN, or an infinite maximum: a bool tensor without dimensions."""
    return logits.amax(-1).isfinite().all()  # the maximum of numbers and NaN is NaN
