"""Counter-based random numbers: the noise of a code is a hash of the clip's seed, the frame and the codebook.

There is no generator state, so a clip gets the same noise in any batch, on any device and from any first frame.

Letters: B clips, K codebooks, S steps, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.common.seeds import derive_keys

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio


def noise_keys(seeds: Sequence[int], frames: Tensor) -> Tensor:
    """The noise key of each code.

    Args:
        seeds: One per clip.
        frames: The frame of each code: int64 [B, K, S] or [K, S].

    Returns:
        Keys, int32 [B, K, S].
    """
    shape = (len(seeds), 1, 1)
    seed_keys = derive_keys(np.uint64(0), np.array([seed % 2**63 for seed in seeds], np.uint64)).reshape(shape)
    codebook = np.arange(frames.shape[-2], dtype=np.uint64)[:, None]
    mixed = derive_keys(seed_keys, frames.cpu().numpy().astype(np.uint64) * np.uint64(1024) + codebook)  # wraps around
    return torch.from_numpy(mixed.astype(np.uint32).view(np.int32)).to(frames.device)  # the low 32 bits


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
