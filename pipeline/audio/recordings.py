"""Reads the recording that a clip of a dataset was cut from, if the corpus is available."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio import audio_io, loudness


def load_source_audio(root: str | None, info: Mapping[str, Any], rate: int, channels: int = 1) -> np.ndarray | None:
    """Return the original audio of a clip.

    Args:
        root: The corpus folder, as preprocessing's data.root; None if the corpus is not available.
        info: The clip's `json` in the dataset: path, start and duration in seconds, gain in dB where it has one.
        rate: The sample rate of the result in Hz.
        channels: 1 for mono, 2 for stereo.

    Returns:
        float32 [S], for stereo [S, 2], or None if `root` is None.

    Raises:
        AudioError: The recording is not in `root`, or cannot be read.
    """
    if root is None:
        return None
    path = Path(str(info.get("path")))
    if "path" not in info or path.is_absolute() or ".." in path.parts:  # datasets are not trusted
        raise audio_io.AudioError(str(path), "missing: it is not in corpus_root=")
    start, duration = info["start"], info["duration"]
    wav = audio_io.read(Path(root) / path, start=start, duration=duration, rate=rate, channels=channels)
    return loudness.amplify(wav, info["gain_db"]) if "gain_db" in info else wav
