"""The recording that a clip of a cache was cut from, where the corpus is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio import audio_io


def load_source_audio(root: str | None, info: Mapping[str, Any], rate: int) -> np.ndarray | None:
    """The sound of a clip [S] by its `json`; None without a root.

    root: the corpus' folder, as preprocessing's data.root.
    Raises AudioError where it does not lie there.
    """
    if root is None:
        return None
    path = Path(str(info.get("path")))
    if "path" not in info or path.is_absolute() or ".." in path.parts:  # a cache may come from anybody
        raise audio_io.AudioError(str(path), "missing: it does not lie in corpus_root=")
    return audio_io.read(Path(root) / path, start=info["start"], duration=info["duration"], rate=rate)
