"""Encoder and decoder of the embedded codec equal naive loops; codes of steady tones are steady and keep the pitch."""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.audio.codecs import load_codec
from pipeline.audio.encodec.spectral import BINS, FLOOR, HOP, WINDOW, PhaseDecoder, SpectralEncoder, band_centres


def bands_in_loops(wav: np.ndarray) -> np.ndarray:
    """[S] -> [T, D] in float64, one frame and one band at a time."""
    centres = [-1.0, *band_centres(), float(BINS)]
    padded = np.pad(wav.astype(np.float64), (WINDOW - HOP) // 2)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    out = []
    for t in range(len(wav) // HOP):
        spectrum = np.abs(np.fft.rfft(padded[t * HOP : t * HOP + WINDOW] * hann)) / (WINDOW / 4)
        row = []
        for left, centre, right in zip(centres, centres[1:], centres[2:], strict=False):
            weights = [max(0.0, min((k - left) / (centre - left), (right - k) / (right - centre))) for k in range(BINS)]
            row.append(math.log(np.dot(weights, spectrum) / sum(weights) + FLOOR))
        out.append(row)
    return np.array(out)


def sound_in_loops(logs: np.ndarray) -> np.ndarray:
    """[T, D] -> [320 T] in float64, one frame and one bin at a time."""
    bins = np.arange(BINS)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    out = np.zeros(len(logs) * HOP + WINDOW)
    weight = np.zeros_like(out)
    phase = 2 * np.pi * (3 - math.sqrt(5)) / 2 * bins
    for t, row in enumerate(logs):
        magnitude = np.maximum(np.exp(np.interp(bins, band_centres(), row)) - FLOOR, 0)
        height = np.log(magnitude + 1e-7)
        peaks = [k for k in range(1, BINS - 1) if height[k] > height[k - 1] and height[k] >= height[k + 1]]
        new = np.empty(BINS)
        for k in range(BINS):
            p = min(peaks, key=lambda p: (abs(p - k), p))  # of two equally near, the lower
            curve = height[p - 1] - 2 * height[p] + height[p + 1]
            offset = np.clip(0.5 * (height[p - 1] - height[p + 1]) / curve, -0.5, 0.5)
            new[k] = phase[p] + 2 * np.pi * (p + offset) / WINDOW * HOP
        phase = new
        frame = np.roll(np.fft.irfft(magnitude * WINDOW / 4 * np.exp(1j * phase)), WINDOW // 2)
        out[t * HOP : t * HOP + WINDOW] += frame * hann
        weight[t * HOP : t * HOP + WINDOW] += hann**2
    lead = (WINDOW - HOP) // 2
    return (out / np.maximum(weight, 0.1))[lead : lead + len(logs) * HOP]


def chord(seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * 24_000)) / 24_000
    return sum(0.2 * np.sin(2 * np.pi * f * t) * np.exp(-t) for f in (221.0, 443.7, 1318.0)).astype(np.float32)


def test_encoder_equals_naive_loops() -> None:
    wav = chord(0.08)
    analysis = SpectralEncoder(torch.zeros(359))
    result = analysis(torch.from_numpy(wav)[None, None])[0].T.numpy()
    np.testing.assert_allclose(result, bands_in_loops(wav), atol=2e-3)


def test_decoder_equals_naive_loops() -> None:
    logs = bands_in_loops(chord(0.12)).astype(np.float32)
    result = PhaseDecoder(torch.zeros(359))(torch.from_numpy(logs.T)[None])[0, 0].numpy()
    expected = sound_in_loops(logs)
    assert np.linalg.norm(result - expected) < 1e-2 * np.linalg.norm(expected)


def test_rows_are_independent_of_the_batch() -> None:
    synthesis = PhaseDecoder(torch.zeros(359))
    logs = torch.randn(5, 359, 40, generator=torch.Generator().manual_seed(0)) - 5
    batch = synthesis(logs)
    for row, wav in zip(logs, batch, strict=True):
        torch.testing.assert_close(synthesis(row[None])[0], wav, atol=1e-6, rtol=1e-5)


def test_steady_tone_keeps_codes_and_pitch() -> None:
    """The purpose of the codec: codes that a small model can learn, and audio of the same pitch."""
    codec = load_codec("encodec_embedded", 8)
    t = torch.arange(48_000) / 24_000
    for hz in (196.0, 261.6, 880.0):
        wav = sum(0.3 / h * torch.sin(2 * math.pi * hz * h * t) for h in (1, 2, 3))[None, None]
        codes = codec.encode(wav)
        assert (codes[0, 0, 11:140] == codes[0, 0, 10:139]).float().mean() > 0.9
        sound = codec.decode(codes)[0, 0, 12_000:36_000]
        spectrum = torch.fft.rfft(sound * torch.hann_window(24_000)).abs()
        assert abs(spectrum.argmax().item() - hz) < 0.02 * hz


def test_silence_stays_quiet() -> None:
    codec = load_codec("encodec_embedded", 8)
    assert codec.decode(codec.encode(torch.zeros(1, 1, 24_000))).abs().max() < 0.01
