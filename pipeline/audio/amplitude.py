"""Sounds whose amplitude is wrong: peaks far above full scale, and channels that cancel each other.

A float file in the scale of integers has a peak of 32,768; one of -1..1 may exceed full scale a little where a lossy
codec or a filter overshoots, which is normal. Stereo in antiphase (one channel inverted) is silence in the mono mix.

Letters: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.errors import InputError

POLICIES = ("scale", "skip", "keep")
HIGHEST_PEAK = 2.0  # times full scale, +6 dB: overshoot stays below
LOST = 0.01  # energy of the mix over the first channel's, -20 dB: uncorrelated channels of a stereo file give 0.5
SPIKE = 1e-4  # of the peak: where 99 % of the samples are below it, the peak is no sound's
CANCELLED = "cancelled: its channels cancel each other in the mono mix"


def check_policy(policy: str) -> None:
    """Raises InputError for a value that the setting `bad_amplitude` does not have."""
    if policy not in POLICIES:
        raise InputError(f"bad_amplitude={policy}: expected {', '.join(POLICIES)}")


def mixed(block: np.ndarray) -> np.ndarray:
    """[S, channels] -> [S], or [S, 2]: the mean of the channels, and the first one."""
    if block.shape[1] == 1:
        return block[:, 0]
    return np.stack([block.mean(axis=1, dtype=np.float32), block[:, 0]], axis=1)


def mono(channels: np.ndarray) -> tuple[np.ndarray, bool]:
    """The mix of a sound, or its first channel where the channels cancel each other; and whether they do.

    channels: float32 [S] of a mono file, or [S, 2]: the mix and the first channel.
    """
    if channels.ndim == 1:
        return channels, False
    mix, first = np.ascontiguousarray(channels[:, 0]), np.ascontiguousarray(channels[:, 1])
    energy = float(np.dot(first, first))
    is_cancelled = energy > SPIKE**2 * len(first) and float(np.dot(mix, mix)) < LOST * energy
    return (first if is_cancelled else mix), is_cancelled


def adjust(wav: np.ndarray, policy: str, faults: Sequence[str] = ()) -> tuple[np.ndarray | None, str]:
    """A clip [S] as the policy has it, None where it is skipped; and why it is not as the file has it.

    faults: what was wrong with its channels already, where the first was taken instead of the mix. The wav is finite.
    """
    if policy == "keep" or not len(wav):
        return wav, ""
    reasons = [f"{fault}; its first channel is used" if policy == "scale" else fault for fault in faults]
    peak = float(max(wav.max(), -wav.min()))
    if peak > HIGHEST_PEAK:
        is_spike = float(np.quantile(np.abs(wav), 0.99)) < SPIKE * peak
        reasons.append(f"above full scale: its peak is {peak:,.6g}, where full scale is 1")
        if is_spike:
            return None, f"{reasons[-1]}, and nearly all other samples are below {SPIKE:g} of that"
        if policy == "scale":
            wav = wav / np.float32(peak)
            reasons[-1] += "; scaled to full scale"
    if reasons and policy == "skip":
        return None, f"{reasons[0]}; bad_amplitude=scale uses it"
    return wav, "; ".join(reasons)
