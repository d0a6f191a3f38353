"""Loudness by BS.1770: the target is reached, nothing clips, and a second time changes nothing."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import loudness
from pipeline.common.errors import InputError

RATE = 24_000


def sound(seed: int, seconds: float, level: float, decay: float) -> np.ndarray:
    """Noise and a tone that fade out, with a peak of `level` in dBFS."""
    rng = np.random.default_rng(seed)
    time = np.arange(max(1, round(seconds * RATE))) / RATE
    wav = (np.sin(2 * np.pi * rng.uniform(50, 5000) * time) + 0.3 * rng.standard_normal(len(time))) * np.exp(
        -decay * time
    )
    return (wav / np.abs(wav).max() * 10 ** (level / 20)).astype(np.float32)


SOUNDS = st.builds(
    sound, st.integers(0, 99), st.floats(0.001, 2), st.floats(-50, 6), st.sampled_from([0.0, 1.0, 20.0, 200.0])
)


@settings(max_examples=40, deadline=None)
@given(SOUNDS, st.sampled_from([-14.0, -23.0, -30.0]), st.sampled_from([-1.0, -6.0]))
def test_gain_reaches_target_or_peak_limit(wav: np.ndarray, target: float, peak: float) -> None:
    """Also for sounds shorter than a gating block. Where the peak limits the gain, the true peak is at the limit."""
    gain, is_limited = loudness.loudness_gain(wav, RATE, target, peak)
    after = loudness.amplify(wav, gain)
    level, true_peak = loudness.measure_loudness(after, RATE), loudness.measure_true_peak(after, RATE)
    assert after.dtype == np.float32 and true_peak <= peak + 0.01 and np.abs(after).max() <= 10 ** (peak / 20) + 1e-3
    if is_limited:
        assert level < target and true_peak == pytest.approx(peak, abs=0.02)
    elif level > -math.inf:
        assert level == pytest.approx(target, abs=0.1)
    again, _ = loudness.loudness_gain(after, RATE, target, peak)
    assert abs(again) <= 0.011, "idempotent"


def test_reference_tones_of_the_standard() -> None:
    """A full-scale sine of 997 Hz in one channel has -3.01 LUFS, whatever the rate; its true peak is 0 dB."""
    for rate in (16_000, 24_000, 44_100, 48_000):
        tone = np.sin(2 * np.pi * 997 * np.arange(2 * rate) / rate).astype(np.float32)
        assert loudness.measure_loudness(tone, rate) == pytest.approx(-3.01, abs=0.15)
        assert loudness.measure_true_peak(tone, rate) == pytest.approx(0, abs=0.1)
    between = np.sin(np.pi / 2 * np.arange(4_000) + np.pi / 4).astype(np.float32)  # samples at 0.7, peaks between them
    assert loudness.measure_true_peak(between[100:-100], RATE) == pytest.approx(0, abs=0.4)


def test_silence_after_a_short_sound_keeps_its_loudness() -> None:
    wav = sound(1, 0.1, -6, 20)
    padded = np.pad(wav, (0, RATE * 3 // 10))
    assert loudness.measure_loudness(wav, RATE) == pytest.approx(loudness.measure_loudness(padded, RATE), abs=1e-6)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyloudnorm", None)
    with pytest.raises(InputError, match=r"measuring loudness needs pyloudnorm .*: pip install -e \.\[loudness\]"):
        loudness.measure_loudness(np.zeros(800, np.float32), 7_999)  # a rate that no other test uses


def test_sound_below_the_gate_is_left_as_it_is() -> None:
    for wav in (np.zeros(RATE, np.float32), np.zeros(1, np.float32), sound(2, 1, -90, 0)):
        assert loudness.measure_loudness(wav, RATE) == -math.inf
        assert loudness.loudness_gain(wav, RATE, -23, -1) == (0.0, False)
