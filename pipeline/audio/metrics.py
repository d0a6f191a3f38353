"""How alike two sounds are, and what note a sound plays.

Letters: S samples, D width.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from pipeline.common.errors import InputError

WINDOW, HOP = 2048, 512
RANGE_DB = 80.0  # quieter than this below the reference's loudest bin counts as this
CONFIDENT = 0.5  # of a frame's pitch, by the tracker's own measure
HELD = 0.7  # share of a note looked at: its release wavers
FEWEST = 6  # confident frames of 16 ms


def log_spectral_distance(reference: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference of log magnitudes in dB, over bins, then averaged over frames: two [S] -> dB.

    Frames of 2,048 samples, hop 512, Hann. Both are floored 80 dB below the reference's loudest bin.
    """
    a, b = _magnitudes(reference), _magnitudes(other[: len(reference)])
    floor = max(float(a.max()), 1e-8) * 10 ** (-RANGE_DB / 20)
    difference = 20 * np.log10(np.maximum(a, floor) / np.maximum(b, floor))
    return float(np.sqrt(np.square(difference).mean(axis=1)).mean())


def snr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal-to-noise ratio, the noise being the difference: two [S] -> dB, infinite for a copy, -infinite for silence.

    It judges phases too.
    """
    reference, other = (np.asarray(x, np.float64) for x in (reference, other))
    assert reference.shape == other.shape
    signal, noise = np.square(reference).sum(), np.square(reference - other).sum()
    if not signal or not noise:
        return math.inf if signal else -math.inf
    return float(10 * np.log10(signal / noise))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle between vectors: [..., D] and [..., D] -> [...]."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)).clip(min=1e-12)


def pitch(wav: np.ndarray, rate: int) -> float:
    """The note that [S] plays, as a MIDI number with fractions (A4 is 69), or NaN where none is heard.

    The median over the confident frames of its first 70 %, by SwiftF0. Raises InputError where that is not installed.
    """
    found = _tracker().detect(np.asarray(wav, np.float32), rate)
    heard = found.confidence >= CONFIDENT
    heard &= np.arange(len(heard)) < HELD * len(heard)
    if heard.sum() < FEWEST:
        return float("nan")
    return float(np.median(69 + 12 * np.log2(found.pitch_hz[heard] / 440)))


@cache
def _tracker() -> Any:
    try:
        from swift_f0 import SwiftF0
    except ImportError as error:
        raise InputError(f"the pitch tracker is not installed ({error}): pip install -e .[notes]") from None
    return SwiftF0(threads=1, spin=False)


def _magnitudes(wav: np.ndarray) -> np.ndarray:
    """[S] -> [frames, WINDOW / 2 + 1]."""
    wav = np.pad(np.asarray(wav, np.float32), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))) / WINDOW
