"""Spectrograms as pictures, for experiment tracking, reports and the web page."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_RANGE = 80.0  # dB below the loudest point that are visible
_COLOURS = np.array([[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]], np.float32)  # dark up


_WINDOW = 1024  # samples
_LOWEST_BIN = 2  # of the transform of a window


def frequency_height(frequency: float, rate: int) -> float:
    """The height of a frequency in a spectrogram of windows of the default size: 0 at the bottom, 1 at the top.

    Args:
        frequency: In Hz. Heights of frequencies that are not in the picture are below 0 or above 1.
        rate: The sample rate of the sound, in Hz.
    """
    return math.log(frequency * _WINDOW / rate / _LOWEST_BIN) / math.log(_WINDOW / 2 / _LOWEST_BIN)


def spectrogram(wav: NDArray[np.float32], size: int = _WINDOW, height: int = 128) -> NDArray[np.uint8]:
    """Draw a waveform: time to the right, frequency upwards on a logarithmic scale, a range of 80 dB.

    Args:
        wav: [S], or [S, 2], whose channels are averaged.
        size: Samples of a window.
        height: Rows of the picture.

    Returns:
        RGB [height, T, 3], with T at most about 600.
    """
    wav = wav.mean(axis=1) if wav.ndim == 2 else wav
    hop = max(size // 4, len(wav) // 600)
    padded = np.pad(wav.astype(np.float32), (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]  # [T, size]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))) ** 2  # [T, size / 2 + 1]
    rows = np.geomspace(_LOWEST_BIN, size // 2, height)
    low = rows.astype(int).clip(max=size // 2 - 1)
    share = (rows - low).astype(np.float32)
    level = 10 * np.log10(power[:, low] * (1 - share) + power[:, low + 1] * share + 1e-10)  # [T, height]
    height01 = (1 + (level - max(level.max(), -20.0)) / _RANGE).clip(0, 1).T[::-1]  # [height, T]
    points = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(height01, points, channel) for channel in _COLOURS.T], -1).astype(np.uint8)
