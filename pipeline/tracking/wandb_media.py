"""Sounds as W&B shows them: a table with a player and a spectrogram for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.spectrogram import spectrogram

Sounds = Mapping[str, NDArray[np.float32]]  # by name, as "prompt" or "temperature 0.7": wav [S]


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
