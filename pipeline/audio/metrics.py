"""Similarity of two waveforms, and the pitch of a note.

Letters: N clips, S samples, D width.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from pipeline.common.errors import InputError

WINDOW, HOP = 2048, 512
PITCH_TRACKER = "SwiftF0"
RANGE_DB = 80.0  # levels further below the reference's loudest bin are raised to this
MIN_CONFIDENCE = 0.5  # of a frame's pitch, as the tracker reports it
PITCH_SHARE = 0.7  # share of a note that is evaluated: the pitch of its release wavers
MIN_PITCH_FRAMES = 6  # confident frames of 16 ms


def log_spectral_distance(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the log-spectral distance of two waveforms [S] in dB.

    It is the root mean square difference of log magnitudes over bins, averaged over frames of 2,048 samples with hop
    512 and a Hann window. Both are floored 80 dB below the reference's loudest bin.
    """
    a, b = magnitudes(reference), magnitudes(other[: len(reference)])
    floor = max(float(a.max()), 1e-8) * 10 ** (-RANGE_DB / 20)
    difference = 20 * np.log10(np.maximum(a, floor) / np.maximum(b, floor))
    return float(np.sqrt(np.square(difference).mean(axis=1)).mean())


def snr(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the signal-to-noise ratio of two waveforms [S] in dB, where the noise is their difference.

    It is infinite for an exact copy and -infinite for a silent reference. It depends on phases.
    """
    reference, other = (np.asarray(x, np.float64) for x in (reference, other))
    assert reference.shape == other.shape
    signal, noise = np.square(reference).sum(), np.square(reference - other).sum()
    if not signal or not noise:
        return math.inf if signal else -math.inf
    return float(10 * np.log10(signal / noise))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of vectors: [..., D] and [..., D] -> [...]."""
    return np.asarray((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)).clip(min=1e-12))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] scaled to length 1; zeros stay zeros."""
    units: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return units


def mismatched_similarity(prompts: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """The mean cosine similarity of each prompt and the sounds of all other prompts: [N], from two [N, D], N >= 2."""
    cosines: np.ndarray = cosine(prompts[:, None], embeddings[None])
    others: np.ndarray = cosines.sum(1) - np.diagonal(cosines)
    return others / (len(prompts) - 1)


def pitch(wav: np.ndarray, rate: int) -> float:
    """Return the pitch of a note [S] as a MIDI number with fractions (A4 is 69), or NaN if it has none.

    It is SwiftF0's median over the confident frames of the first 70 % of the note.

    Raises:
        InputError: SwiftF0 is not installed.
    """
    track = _tracker().detect(np.asarray(wav, np.float32), rate)
    is_used = track.confidence >= MIN_CONFIDENCE
    is_used &= np.arange(len(is_used)) < PITCH_SHARE * len(is_used)
    if is_used.sum() < MIN_PITCH_FRAMES:
        return float("nan")
    return float(np.median(69 + 12 * np.log2(track.pitch_hz[is_used] / 440)))


@cache
def _tracker() -> Any:
    try:
        from swift_f0 import SwiftF0
    except ImportError as error:
        raise InputError(f"the pitch tracker is not installed ({error}): pip install -e .[notes]") from None
    return SwiftF0(threads=1, spin=False)


def magnitudes(wav: np.ndarray) -> np.ndarray:
    """Return the magnitudes of the spectrum of a waveform over time: [S] -> [frames, WINDOW / 2 + 1]."""
    wav = np.pad(np.asarray(wav, np.float32), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))) / WINDOW
