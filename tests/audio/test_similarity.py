"""Copies of a recording are recognized however they were encoded; other sounds are not."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import soundfile
import soxr

from pipeline.audio import audio_io, similarity

RATE = 44_100


def sound(seed: int, seconds: float = 1.0) -> np.ndarray:
    """A tone with overtones, an attack of noise and an exponential end: pitches of neighbours are a semitone apart."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 110 * 2 ** (seed / 12)
    tone = sum(rng.uniform(0.1, 1) / n * np.sin(2 * np.pi * n * pitch * time + rng.uniform(0, 6)) for n in range(1, 9))
    attack = rng.standard_normal(len(time)) * np.exp(-60 * time)
    wav = (tone + attack) * np.exp(-3 * time)
    return (0.5 * wav / np.abs(wav).max()).astype(np.float32)


def encoded(wav: np.ndarray, rate: int = RATE, kind: str = "WAV") -> np.ndarray:
    """A sound as a file of a format, decoded for comparison."""
    content = io.BytesIO()
    soundfile.write(content, wav, rate, format=kind)
    return audio_io.read(content.getvalue(), rate=similarity.RATE)


def is_near_copy(a: np.ndarray, b: np.ndarray) -> bool:
    spectra = [similarity.spectrum(wav) for wav in (a, b)]
    assert None not in spectra
    return bool([*similarity.similar_spectra(spectra)]) and similarity.is_copy(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.08, 1.0, 3.0])
def test_copies_are_recognized(seconds: float) -> None:
    wav = sound(3, seconds)
    original, quiet = encoded(wav), np.zeros(RATE // 10, np.float32)
    resampled = soxr.resample(wav, RATE, 16_000)
    copies = {
        "mp3": encoded(wav, kind="MP3"),
        "ogg": encoded(wav, kind="OGG"),
        "louder": encoded(1.9 * wav),
        "quieter": encoded(0.1 * wav),
        "inverted": encoded(-wav),
        "resampled": encoded(resampled, 16_000),
        "padded": encoded(np.concatenate([quiet, wav, quiet])),
        "trimmed": encoded(wav[37 : round(0.95 * len(wav))]),
        "all": encoded(0.5 * np.concatenate([quiet[:1000], resampled, quiet]), 16_000, "MP3"),
    }
    assert [name for name, copy in copies.items() if not is_near_copy(original, copy)] == []


def test_other_sounds_are_not_copies() -> None:
    sounds = [encoded(sound(seed)) for seed in range(24)]
    sounds += [encoded(np.random.default_rng(seed).standard_normal(RATE) * 0.1) for seed in range(4)]
    assert [pair for pair in itertools.combinations(range(28), 2) if is_near_copy(*(sounds[i] for i in pair))] == []


def test_silence_has_no_spectrum() -> None:
    assert similarity.spectrum(np.zeros(8000, np.float32)) is None
    assert similarity.waveform_similarity(np.zeros(800), np.zeros(900)) == 0
