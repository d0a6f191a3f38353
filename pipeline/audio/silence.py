"""Silence in a sound: the share of it that is sound, and where its sound starts and ends.

A sound is cut into frames of 20 ms. A frame is silent if half the range of its samples is below a level, so that a
constant offset is silence too.

Letters: S samples, F frames.
"""

from __future__ import annotations

import numpy as np

FRAME_SECONDS = 0.02
SILENCE_DB = -80.0  # dBFS: digital silence and dither are below it


def sounding_frames(wav: np.ndarray, rate: int, level: float) -> np.ndarray:
    """Whether each frame of a sound, [S] or [S, 2], reaches a level in dBFS, bool [F]; the last frame may be shorter.

    A frame of two channels does if one of them does.
    """
    if wav.ndim == 2:
        return np.asarray(np.any([sounding_frames(channel, rate, level) for channel in wav.T], axis=0))
    size = round(rate * FRAME_SECONDS)
    frames = np.pad(wav, (0, -len(wav) % size), mode="edge").reshape(-1, size)
    return np.asarray((frames.max(axis=1) - frames.min(axis=1)) / 2 >= 10 ** (level / 20))


def sound_range(sounding: np.ndarray, rate: int) -> tuple[int, int]:
    """The first sample of the first frame with sound, and the sample after the last one; (0, 0) if there is none.

    Args:
        sounding: What `sounding_frames` returned.
        rate: Hz.
    """
    (frames,) = np.nonzero(sounding)
    size = round(rate * FRAME_SECONDS)
    return (int(frames[0]) * size, int(frames[-1] + 1) * size) if len(frames) else (0, 0)
