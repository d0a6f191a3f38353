"""Spectrograms as pictures."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.spectrogram import frequency_height, spectrogram


@pytest.mark.parametrize("hertz", [110, 440, 3000])
def test_spectrogram_is_brightest_at_the_tone(hertz: float) -> None:
    wav = np.sin(2 * np.pi * hertz * np.arange(24_000) / 24_000).astype(np.float32)
    picture = spectrogram(wav)
    rows = np.geomspace(2, 512, 128) * 24_000 / 1024  # the frequency of each row, from below
    row = picture[:, 40].sum(-1)[::-1].argmax()
    assert picture.shape[0] == 128 and picture.shape[2] == 3 and abs(rows[row] - hertz) < max(0.05 * hertz, 24)
    assert frequency_height(rows[row], 24_000) == pytest.approx(row / 127)


def test_spectrogram_of_silence_is_dark() -> None:
    assert spectrogram(np.zeros(24_000, np.float32)).max() < 60
    assert spectrogram(np.zeros(3, np.float32)).shape[0] == 128
