"""Unusual but real files are read completely: length and content equal ffmpeg's, or what was encoded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio import audio_io
from tests.helpers.odd_sounds import FEW, SECONDS, SOUNDS, Odd, edited, make, missing

RATE = 24_000


def by_ffmpeg(path: Path) -> np.ndarray:
    """Decode a file with ffmpeg: float32 [S], mono at RATE."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "f32le", "-ar", str(RATE), "-ac", "1", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True).stdout, np.float32)


def likeness(wav: np.ndarray, other: np.ndarray) -> float:
    """The cosine similarity of two clips at their best alignment within 60 ms."""
    size = min(len(wav), len(other)) - 6_000
    part = wav[3_000 : 3_000 + size]
    product = np.fft.irfft(np.fft.rfft(other, 1 << 18) * np.conj(np.fft.rfft(part, 1 << 18)), 1 << 18)
    at = int(product[: 2 * 3_000].argmax())
    match = other[at : at + size]
    return float(part @ match / np.linalg.norm(part) / np.linalg.norm(match))


def check(folder: Path, sound: Odd) -> None:
    path = folder / sound.name
    assert path.stat().st_size > 0, "the file was not created"
    if sound.truncated:
        for use in (audio_io.info, partial(audio_io.read, rate=RATE)):
            with pytest.raises(audio_io.AudioError, match="truncated"):
                use(path)
    wav = audio_io.read(path, rate=RATE, keep_truncated=sound.truncated)
    info = audio_io.info(path, keep_truncated=sound.truncated)
    assert abs(info.seconds - len(wav) / RATE) < 0.001, "info and read agree on the length"
    if sound.seconds is None:
        expected = by_ffmpeg(path)
        assert abs(len(wav) - len(expected)) / RATE < 0.06, (len(wav) / RATE, len(expected) / RATE)
        assert likeness(wav, expected) > 0.97
    else:  # ffmpeg reads less
        assert abs(len(wav) / RATE - sound.seconds) < 0.02, len(wav) / RATE
        expected = by_ffmpeg(folder / "m.wav")
        for start in range(0, round(sound.seconds * RATE), round(SECONDS * RATE)):
            assert likeness(wav[start : start + len(expected)], expected) > 0.9, start / RATE
    cuts = [(0.5 * i, 0.5) for i in range(int(2 * info.seconds))]
    parts = list(audio_io.read_segments(path, cuts, rate=RATE, keep_truncated=sound.truncated))
    joined = np.concatenate(parts)
    np.testing.assert_allclose(joined, wav[: len(joined)], atol=1e-6)


def checked(folder: Path, sounds: list[Odd]) -> Iterator[str]:
    """Return the errors of each file, one line each."""
    for sound in sounds:
        try:
            check(folder, sound)
        except (AssertionError, audio_io.AudioError) as error:
            yield f"{sound.name}: {str(error) or repr(error)}"


def test_some_unusual_files_are_read_completely(tmp_path: Path) -> None:
    if lacking := missing():
        pytest.skip(f"install {lacking}")
    sources = [sound for sound in SOUNDS if sound.name in (*FEW, "lame0.mp3", "flac0.flac", "a.aiff")]
    make(tmp_path, sources)
    wrong = [*checked(tmp_path, sources), *checked(tmp_path, edited(tmp_path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_all_unusual_files_are_read_completely(tmp_path: Path) -> None:
    if lacking := missing():
        pytest.skip(f"install {lacking}")
    make(tmp_path, SOUNDS)
    sounds = [*SOUNDS, *edited(tmp_path)]
    assert len(sounds) >= 60
    wrong = list(checked(tmp_path, sounds))
    assert not wrong, "\n".join(wrong)
