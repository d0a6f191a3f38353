"""Seeds and keys derived from several numbers. Changing a formula changes every training run."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio


def fold_seed(*parts: int) -> int:
    """One seed for `torch.manual_seed` from several numbers, such as (seed, step, rank): a polynomial modulo 2**63."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed


def fold_key(*parts: int) -> np.uint64:
    """One 64-bit key from several numbers, such as (seed, epoch): a chain of SplitMix64."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = derive_keys(state, np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    key: np.uint64 = state[0]
    return key


def derive_keys(state: np.ndarray | np.uint64, parts: np.ndarray) -> np.ndarray:
    """One key for each number of `parts`, all derived from one state: uint64, shape of `parts`."""
    return splitmix64(parts.astype(np.uint64) + state + GOLDEN)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """A bijective mix of uint64 [...] (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
