"""Random numbers by place: those of a code are a hash of its clip's seed, its frame and its codebook.

Nothing is drawn in turn, so a clip has the same ones alone as among others, on any device, and from any frame on.

Letters: B clips, K codebooks, S steps, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9


def noise_keys(seeds: Sequence[int], frames: Tensor) -> Tensor:
    """A key for each code: frames int64 [B, K, S] (or [K, S]) -> int32 [B, K, S]."""
    seed = torch.tensor([seed % 2**63 for seed in seeds], device=frames.device)[:, None, None]
    book = torch.arange(frames.shape[-2], device=frames.device)[:, None]
    mixed = _mix64(_mix64(seed) + frames * 1024 + book)  # products and sums wrap around
    return mixed.to(torch.int32)  # its low half


def gumbel_noise(keys: Tensor, classes: int) -> Tensor:
    """Standard Gumbel noise: int32 [...] -> float32 [..., C].

    argmax(logits + noise) is a draw from softmax(logits). Unlike a search in cumulated probabilities, it hardly ever
    turns on the last bits of the logits, which depend on the size of the batch.
    """
    places = (torch.arange(classes, device=keys.device) * _GOLDEN).to(torch.int32)
    h = keys[..., None] ^ places
    # Wellons, "Prospecting for Hash Functions" (2018), triple32; the masks make shifts logical
    for shift, mask, factor in ((17, 0x7FFF, -0x12A52B45), (11, 0x1FFFFF, -0x53B3E4AF), (15, 0x1FFFF, 0x31848BAB)):
        h ^= (h >> shift).bitwise_and_(mask)
        h *= factor
    h ^= (h >> 14).bitwise_and_(0x3FFFF)
    uniform = h.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix64(x: Tensor) -> Tensor:
    """Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators" (2014): the output mix of SplitMix64."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _logical(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _logical(x, 31)


def _logical(x: Tensor, shift: int) -> Tensor:
    return (x >> shift) & ((1 << (64 - shift)) - 1)
