"""Tables of audio for W&B: each sound with a player and a spectrogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.spectrogram import spectrogram

Sounds = Mapping[str, NDArray[np.float32]]  # wavs [S] by name, such as "prompt" or "temperature 0.7"
NamedAudio = tuple[str, Sounds]  # a clip's name and its sounds


def audio_table(clips: Sequence[NamedAudio], step: int, rate: int) -> Any:
    """A `wandb.Table` with a row for each clip, and a player and a spectrogram for each of its sounds."""
    import wandb

    names = list(dict.fromkeys(name for _, sounds in clips for name in sounds))
    table = wandb.Table(columns=["step", "clip", *(f"{name}{kind}" for name in names for kind in ("", " spectrogram"))])
    for clip, sounds in clips:
        row: list[Any] = [step, clip]
        for name in names:
            wav = sounds.get(name)
            if wav is None:
                row += [None, None]
            else:
                row += [wandb.Audio(wav, sample_rate=rate), wandb.Image(spectrogram(wav), file_type="png")]
        table.add_data(*row)
    return table
