"""Sounds as W&B shows them: a table with a player and a spectrogram for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sounds = Mapping[str, NDArray[np.float32]]  # by name, as "prompt" or "temperature 0.7": wav [S]
_RANGE = 80.0  # dB below the loudest point that still show
_COLOURS = np.array([[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]], np.float32)  # dark up


def spectrogram(wav: NDArray[np.float32], size: int = 1024, height: int = 128) -> NDArray[np.uint8]:
    """A picture [height, T, 3] of a wav [S]: time to the right, pitch upwards on a logarithmic scale, 80 dB deep."""
    hop = max(size // 4, len(wav) // 600)  # some 600 columns are all that a table shows
    padded = np.pad(wav.astype(np.float32), (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]  # [T, size]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))) ** 2  # [T, size / 2 + 1]
    rows = np.geomspace(2, size // 2, height)
    low = rows.astype(int).clip(max=size // 2 - 1)
    share = (rows - low).astype(np.float32)
    level = 10 * np.log10(power[:, low] * (1 - share) + power[:, low + 1] * share + 1e-10)  # [T, height]
    height01 = (1 + (level - max(level.max(), -20.0)) / _RANGE).clip(0, 1).T[::-1]  # [height, T]
    points = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(height01, points, channel) for channel in _COLOURS.T], -1).astype(np.uint8)


def audio_table(heard: Sequence[tuple[str, Sounds]], step: int, rate: int) -> Any:
    """A `wandb.Table`: a row a clip; for each sound its player and its spectrogram."""
    import wandb

    names = list(dict.fromkeys(name for _, sounds in heard for name in sounds))
    made = wandb.Table(columns=["step", "clip", *(f"{name}{kind}" for name in names for kind in ("", " spectrogram"))])
    for clip, sounds in heard:
        row: list[Any] = [step, clip]
        for name in names:
            wav = sounds.get(name)
            row += (
                [None, None]
                if wav is None
                else [wandb.Audio(wav, sample_rate=rate), wandb.Image(spectrogram(wav), file_type="png")]
            )
        made.add_data(*row)
    return made
