"""Loudness by ITU-R BS.1770-4, the gain that reaches a target loudness, and the true peak that limits it.

Letters: S samples.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import soxr

from pipeline.common.errors import InputError

if TYPE_CHECKING:
    from pyloudnorm import Meter

BLOCK_SECONDS = 0.4  # of a gating block, the shortest sound that can be measured
OVERSAMPLING = 4  # of the true peak, as BS.1770-4 recommends for 48 kHz


def measure_loudness(wav: np.ndarray, rate: int) -> float:
    """The integrated loudness of a sound, [S] or [S, 2], in LUFS; -inf below -70, the standard's absolute gate.

    Two equal channels are 3 dB louder than one, as the standard defines. A sound shorter than a gating block is
    measured as one that is followed by silence.
    """
    size = math.ceil(BLOCK_SECONDS * rate)
    padding = [(0, max(0, size - len(wav)))] + [(0, 0)] * (wav.ndim - 1)
    return float(_meter(rate).integrated_loudness(np.pad(wav.astype(np.float64), padding)))


def measure_true_peak(wav: np.ndarray, rate: int) -> float:
    """The peak of the waveform between the samples of a sound, [S] or [S, 2], of at least one sample, in dB."""
    dense = soxr.resample(wav.astype(np.float32), rate, OVERSAMPLING * rate, quality="HQ")
    peak = max(float(np.abs(wav).max()), float(np.abs(dense).max(initial=0)))
    return 20 * math.log10(peak) if peak else -math.inf


def loudness_gain(wav: np.ndarray, rate: int, target: float, peak: float) -> tuple[float, bool]:
    """The gain that gives a sound a target loudness.

    Args:
        wav: [S] or [S, 2].
        rate: Hz.
        target: LUFS.
        peak: The highest true peak that the sound may have, in dB.

    Returns:
        The gain in dB, a multiple of 0.01, 0 for a sound without loudness; and whether the peak limits it.
    """
    loudness = measure_loudness(wav, rate)
    if loudness == -math.inf:
        return 0.0, False
    gain, highest = target - loudness, peak - measure_true_peak(wav, rate)
    if gain > highest:
        return math.floor(100 * highest + 1e-3) / 100, True
    return round(gain, 2), False


def amplify(wav: np.ndarray, gain: float) -> np.ndarray:
    """A sound with a gain in dB, float32."""
    return np.asarray(wav * np.float32(10 ** (gain / 20)))


def check_meter() -> None:
    """Raises InputError if the package that measures loudness is not installed."""
    _meter(48_000)


@cache
def _meter(rate: int) -> Meter:
    try:
        from pyloudnorm import Meter
    except ImportError as error:
        raise InputError(f"measuring loudness needs pyloudnorm ({error}): pip install -e .[loudness]") from None
    return Meter(rate, block_size=BLOCK_SECONDS)
