"""Clips with a wrong amplitude: peaks far above full scale, and channels that cancel in the mono mix.

A float file in the scale of integers has a peak of 32,768. A lossy codec or a filter overshoots -1..1 a little, which
is normal. Stereo in antiphase (one channel inverted) is silent in the mono mix.

Letters: S samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HIGHEST_PEAK = 2.0  # times full scale, +6 dB: overshoot stays below
CANCELLED_ENERGY = 0.01  # of the mix relative to the first channel, -20 dB; uncorrelated channels give 0.5
SPIKE_LEVEL = 1e-4  # of the peak: if 99 % of the samples are below it, the peak is an error and not sound
CANCELLED = "cancelled: its channels cancel each other in the mono mix"


def mix_channels(block: np.ndarray) -> np.ndarray:
    """Return a mono block [S, 1] as [S], and any other as [S, 2]: the mean of the channels, and the first channel."""
    if block.shape[1] == 1:
        return block[:, 0]
    return np.stack([block.mean(axis=1, dtype=np.float32), block[:, 0]], axis=1)


def split_stereo(block: np.ndarray) -> np.ndarray:
    """Return a block [S, C] as stereo [S, 2]: one channel becomes two equal ones, more than two are mixed.

    The first channel is left, the second is right, and the others are on both sides. The mean of the two sides is the
    mean of all channels.
    """
    if block.shape[1] <= 2:
        return block if block.shape[1] == 2 else np.repeat(block, 2, axis=1)
    centre = block[:, 2:].sum(axis=1, keepdims=True, dtype=np.float32)
    return np.asarray((2 * block[:, :2] + centre) / np.float32(block.shape[1]), np.float32)


def mix_sound(wav: np.ndarray) -> np.ndarray:
    """Return a sound, [S] or stereo [S, 2], as mono [S]: the mean, or the left channel if both cancel each other."""
    return wav if wav.ndim == 1 else to_mono(mix_channels(wav))[0]


def to_mono(channels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the mono mix [S], or the first channel if the channels cancel, and whether they do.

    Args:
        channels: float32 [S] of a mono file, or [S, 2]: the mix and the first channel.
    """
    if channels.ndim == 1:
        return channels, False
    mix, first = np.ascontiguousarray(channels[:, 0]), np.ascontiguousarray(channels[:, 1])
    energy = float(np.dot(first, first))
    is_cancelled = energy > SPIKE_LEVEL**2 * len(first) and float(np.dot(mix, mix)) < CANCELLED_ENERGY * energy
    return (first if is_cancelled else mix), is_cancelled


def apply_policy(wav: np.ndarray, policy: str, faults: Sequence[str] = ()) -> tuple[np.ndarray | None, str]:
    """Apply `bad_amplitude` to a clip.

    Args:
        wav: [S] or stereo [S, 2], finite.
        policy: "scale", "skip" or "keep"; see conf/preprocess.yaml.
        faults: Faults of the channels for which the first channel was already used instead of the mix.

    Returns:
        The clip, or None if it is skipped; and what was changed or why it is skipped, else "".
    """
    if policy == "keep" or not len(wav):
        return wav, ""
    reasons = [f"{fault}; its first channel is used" if policy == "scale" else fault for fault in faults]
    peak = float(max(wav.max(), -wav.min()))
    if peak > HIGHEST_PEAK:
        is_spike = float(np.quantile(np.abs(wav), 0.99)) < SPIKE_LEVEL * peak
        reasons.append(f"above full scale: its peak is {peak:,.6g}, where full scale is 1")
        if is_spike:
            return None, f"{reasons[-1]}, and nearly all other samples are below {SPIKE_LEVEL:g} of that"
        if policy == "scale":
            wav = wav / np.float32(peak)
            reasons[-1] += "; scaled to full scale"
    if reasons and policy == "skip":
        return None, f"{reasons[0]}; bad_amplitude=scale uses it"
    return wav, "; ".join(reasons)
