"""Channels that cancel and peaks above full scale, as handled by `audio_io.read` and `read_segments`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio import amplitude, audio_io

RATES = (24_000, 44_100)


def tone(rate: int, seconds: float = 3.0, pitch: float = 330) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)


def write(path: Path, channels: list[np.ndarray], rate: int) -> Path:
    soundfile.write(path, np.stack(channels, axis=1), rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gain", [-1.0, -0.9])
def test_first_channel_replaces_cancelled_mix(tmp_path: Path, rate: int, gain: float) -> None:
    """`read` and `read_segments` return exactly the first channel; without `on_fault` they return the mix."""
    left = tone(rate)
    path = write(tmp_path / "a.wav", [left, gain * left], rate)
    alone = write(tmp_path / "alone.wav", [left], rate)
    faults: list[str] = []
    assert np.array_equal(audio_io.read(path, on_fault=faults.append, rate=24_000), audio_io.read(alone, rate=24_000))
    assert faults == [amplitude.CANCELLED]
    cuts = [(0.0, 1.0), (0.5, 1.0), (2.0, 0.5)]
    ours = list(audio_io.read_segments(path, cuts, on_fault=faults.append, rate=24_000))
    for cut, channel in zip(ours, audio_io.read_segments(alone, cuts, rate=24_000), strict=True):
        assert np.array_equal(cut, channel) and cut.flags.c_contiguous
    assert len(faults) == 4
    assert np.abs(audio_io.read(path, rate=24_000)).max() < 0.03


@pytest.mark.parametrize("rate", RATES)
def test_other_clips_equal_the_mix(tmp_path: Path, rate: int) -> None:
    """Also with a silent channel, uncorrelated channels, or silence."""
    left, right = tone(rate), tone(rate, pitch=500)
    zero = np.zeros_like(left)
    kinds = {
        "wide": [left, right],
        "left": [left, zero],
        "right": [zero, right],
        "silence": [zero, zero],
        "mono": [left],
    }
    for name, channels in kinds.items():
        path = write(tmp_path / f"{name}.wav", channels, rate)
        checked = audio_io.read(path, on_fault=lambda fault: pytest.fail(fault), rate=24_000)
        assert np.array_equal(checked, audio_io.read(path, rate=24_000))


def test_cancellation_is_detected_per_clip(tmp_path: Path) -> None:
    """The recording is in antiphase for a part of its length."""
    left = tone(24_000)
    right = left.copy()
    right[24_000:48_000] *= -1
    path = write(tmp_path / "a.wav", [left, right], 24_000)
    faults: list[int] = []
    cuts = enumerate(
        audio_io.read_segments(path, [(0, 1), (1, 1), (2, 1)], on_fault=lambda _: faults.append(1), rate=24_000)
    )
    counts = [(number, len(faults)) for number, _ in cuts]
    assert counts == [(0, 0), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("peak", "policy", "scaled", "reason"),
    [
        (1.9, "scale", False, ""),
        (128.0, "scale", True, "above full scale: its peak is 128, where full scale is 1; scaled to full scale"),
        (128.0, "keep", False, ""),
        (
            2.0**31,
            "scale",
            True,
            "above full scale: its peak is 2.14748e+09, where full scale is 1; scaled to full scale",
        ),
    ],
)
def test_high_peak_is_scaled_to_full_scale(peak: float, policy: str, scaled: bool, reason: str) -> None:
    wav = (tone(24_000) / 0.4).astype(np.float32)
    wav /= np.abs(wav).max()
    result, note = amplitude.apply_policy(wav * np.float32(peak), policy)
    assert result is not None and note == reason
    np.testing.assert_allclose(result, wav if scaled else wav * peak, rtol=1e-6)


def test_spike_is_skipped() -> None:
    wav = tone(24_000).astype(np.float32)
    wav[7] = -1e29
    result, note = amplitude.apply_policy(wav, "scale")
    assert result is None and note.startswith("above full scale: its peak is 1e+29")
