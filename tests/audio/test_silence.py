"""Trimming removes silent frames only, and all of them at both ends."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.silence import SILENCE_DB, sound_range, sounding_frames

RATE = 8_000
FRAME = 160  # samples
LEVELS = st.lists(st.sampled_from([-120.0, -90.0, -61.0, -59.0, -20.0]), min_size=1, max_size=12)


def noise(levels: list[float], cut: int, offset: float) -> np.ndarray:
    """Noise with a peak of each level in dBFS for one frame, without the last samples, around a constant."""
    rng = np.random.default_rng(len(levels))
    frames = [10 ** (level / 20) * np.sign(rng.uniform(-1, 1, FRAME)) for level in levels]
    return (np.concatenate(frames)[: len(levels) * FRAME - cut] + offset).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(LEVELS, st.integers(0, FRAME // 2), st.sampled_from([0.0, 0.25]), st.sampled_from([-60.0, SILENCE_DB]))
def test_trimming_removes_no_sound(levels: list[float], cut: int, offset: float, threshold: float) -> None:
    wav = noise(levels, cut, offset)
    sounding = sounding_frames(wav, RATE, threshold)
    assert sounding.tolist() == [level > threshold for level in levels]
    start, end = sound_range(sounding, RATE)
    removed = np.concatenate([wav[:start], wav[end:]]) - np.float32(offset)
    assert not (np.abs(removed) > 10 ** (threshold / 20) + 1e-6).any()
    trimmed = wav[start:end]
    again = sounding_frames(trimmed, RATE, threshold)
    assert not len(trimmed) or (again[0] and again[-1])
    assert np.array_equal(trimmed[slice(*sound_range(again, RATE))], trimmed), "idempotent"


def test_digital_silence_has_no_sound() -> None:
    dither = np.sign(np.sin(np.arange(RATE))).astype(np.float32) / 32768
    for silent in (np.zeros(RATE), np.full(RATE, 0.25), dither):
        assert not sounding_frames(silent.astype(np.float32), RATE, SILENCE_DB).any()
