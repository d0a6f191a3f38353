"""What the player of a sound shows: the outline of its waveform, and the ticks of its axes.

Letters: S samples.
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.spectrogram import frequency_height
from pipeline.evaluation.axis_ticks import ticks

COLUMNS = 240  # points of a waveform
FREQUENCIES = (100, 1_000, 10_000)  # Hz
Tick = tuple[str, float]  # its text, and its position in percent of the axis


def outline(wav: np.ndarray) -> str:
    """The outline of a waveform, [S] or [S, 2], as the data of an SVG path in a box of `COLUMNS` x 100.

    Each column covers the range from the lowest to the highest of its samples, of all channels.
    """
    top_wav, bottom_wav = (wav, wav) if wav.ndim == 1 else (wav.max(axis=1), wav.min(axis=1))
    edges = np.linspace(0, len(wav), min(COLUMNS, len(wav)) + 1).astype(int)[:-1]
    high, low = np.maximum.reduceat(top_wav, edges), np.minimum.reduceat(bottom_wav, edges)
    xs = np.linspace(0, COLUMNS, len(edges))
    top = [f"{x:.4g},{50 - 50 * y:.0f}" for x, y in zip(xs, high.clip(-1, 1), strict=True)]
    bottom = [f"{x:.4g},{50 - 50 * y:.0f}" for x, y in zip(xs, low.clip(-1, 1), strict=True)]
    return f"M{' '.join(top + bottom[::-1])}Z"


def time_ticks(seconds: float) -> list[Tick]:
    """Ticks of the time axis, in seconds."""
    return [(f"{tick:g}", 100 * tick / seconds) for tick in ticks(0, seconds, 4)]


def frequency_ticks(rate: int) -> list[Tick]:
    """Ticks of the frequency axis, in kHz, as high as in the spectrogram of a sound with this sample rate in Hz."""
    heights = {frequency: 100 * frequency_height(frequency, rate) for frequency in FREQUENCIES}
    return [(f"{frequency / 1000:g}", height) for frequency, height in heights.items() if 0 <= height <= 100]
