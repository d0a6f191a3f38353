"""Metrics of known signals."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from pipeline.audio import metrics
from pipeline.common.errors import InputError

RATE = 24_000


def note(midi: float, seconds: float = 2.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    hz = 440 * 2 ** ((midi - 69) / 12)
    return (0.2 * sum(np.sin(2 * np.pi * hz * h * t + h) / h for h in range(1, 7)) * np.exp(-t)).astype(np.float32)


def test_log_spectral_distance() -> None:
    wav = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    assert metrics.log_spectral_distance(wav, wav) == 0
    assert metrics.log_spectral_distance(wav, wav / 10) == pytest.approx(20, abs=0.01)
    assert metrics.log_spectral_distance(wav, -wav) == pytest.approx(0, abs=1e-4)  # independent of phases
    assert metrics.log_spectral_distance(wav, np.zeros_like(wav)) < metrics.RANGE_DB  # and of inaudible levels
    assert math.isfinite(metrics.log_spectral_distance(np.zeros(RATE), wav))


def test_snr() -> None:
    wav = np.random.default_rng(0).normal(size=RATE)
    assert metrics.snr(wav, wav * 0.9) == pytest.approx(20)
    assert metrics.snr(wav, -wav) == pytest.approx(-6.02, abs=0.01)
    assert metrics.snr(wav, wav) == math.inf
    assert metrics.snr(np.zeros(10), np.ones(10)) == -math.inf


def test_cosine() -> None:
    a, b = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), np.array([[3.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(metrics.cosine(a, b), [1, math.sqrt(0.5), 0])


@pytest.mark.parametrize("midi", [48, 60.5, 76])
def test_pitch_of_notes(midi: float) -> None:
    assert metrics.pitch(note(midi), RATE) == pytest.approx(midi, abs=0.15)


def test_pitch_of_noise_and_silence_is_nan() -> None:
    assert math.isnan(metrics.pitch(np.zeros(RATE), RATE))
    assert math.isnan(metrics.pitch(np.random.default_rng(0).normal(size=RATE) * 0.1, RATE))


def test_missing_pitch_tracker_error_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._tracker.cache_clear()
    monkeypatch.setitem(sys.modules, "swift_f0", None)
    with pytest.raises(InputError, match=r"pip install -e .\[notes\]"):
        metrics.pitch(note(60), RATE)
