"""Counter-based random numbers: the noise of a code is a hash of the clip's seed, the frame and the codebook.

There is no generator state, so a clip gets the same noise in any batch, on any device and from any first frame.

Letters: B clips, K codebooks, S steps, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio


def noise_keys(seeds: Sequence[int], frames: Tensor) -> Tensor:
    """The noise key of each code.

    Args:
        seeds: One per clip.
        frames: The frame of each code: int64 [B, K, S] or [K, S].

    Returns:
        Keys, int32 [B, K, S].
    """
    seed = torch.tensor([seed % 2**63 for seed in seeds], device=frames.device)[:, None, None]
    codebook = torch.arange(frames.shape[-2], device=frames.device)[:, None]
    mixed = _splitmix64(_splitmix64(seed) + frames * 1024 + codebook)  # products and sums wrap around
    return mixed.to(torch.int32)  # the low 32 bits


def gumbel_noise(keys: Tensor, classes: int) -> Tensor:
    """Standard Gumbel noise, float32 [..., C], from keys, int32 [...].

    argmax(logits + noise) is a sample from softmax(logits). Unlike a search in cumulative probabilities, the result
    hardly ever depends on the last bits of the logits, which may vary with the batch size.
    """
    offsets = (torch.arange(classes, device=keys.device) * _GOLDEN).to(torch.int32)
    h = keys[..., None] ^ offsets
    # Wellons, "Prospecting for Hash Functions" (2018), triple32; the masks turn arithmetic into logical shifts
    for shift, mask, factor in ((17, 0x7FFF, -0x12A52B45), (11, 0x1FFFFF, -0x53B3E4AF), (15, 0x1FFFF, 0x31848BAB)):
        h ^= (h >> shift).bitwise_and_(mask)
        h *= factor
    h ^= (h >> 14).bitwise_and_(0x3FFFF)
    uniform = h.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _splitmix64(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014)."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, shift: int) -> Tensor:
    return (x >> shift) & ((1 << (64 - shift)) - 1)
