"""How alike two recordings are: finds copies that were encoded again, resampled, made louder, or trimmed.

A copy has nearly the same spectrum over all of its length, and its waveform is that of the original but for the gain.
Recordings of other sounds, however similar, differ in their waveforms. Everything is measured below 4 kHz, which copies
at lower sample rates contain too.

Letters: S samples, N recordings, B bands.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RATE = 8000  # Hz of the sounds that are compared
MAX_SECONDS = 600.0  # of a recording that are compared
SPECTRUM_DISTANCE = 2.0  # dB, root mean square over the bands
SAME_WAVEFORM = 0.88, 0.995  # correlation of copies: of noise, which lossy codecs change most, and of periodic sounds
MIN_SAMPLES = RATE // 20  # shorter sounds are no copies: single periods of different sounds are alike
_EDGES = np.geomspace(50, 3900, 33)  # Hz, of the bands
_FLOOR = -35.0  # dB relative to the whole: what is below does not count
_STEP = 0.25  # dB of a unit of a spectrum
_WINDOW, _HOP = 1024, 256  # samples
_EXCERPT = 2 * RATE  # samples
_OVERSAMPLING = 4  # of the correlation: trimmed copies are shifted by parts of a sample


def spectrum(wav: np.ndarray) -> bytes | None:
    """The mean spectrum of a sound [S] at `RATE`, a byte for each band; None for silence."""
    power = np.zeros(_WINDOW // 2 + 1)
    padded = np.pad(wav, _WINDOW)
    for start in range(0, len(padded) - _WINDOW, _HOP * 1000):
        block = padded[start : start + _HOP * 999 + _WINDOW]
        frames = np.lib.stride_tricks.sliding_window_view(block, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
        power += (np.abs(np.fft.rfft(frames)) ** 2).sum(axis=0)
    bands = np.searchsorted(_EDGES, np.fft.rfftfreq(_WINDOW, 1 / RATE))
    energies = np.bincount(bands, power, len(_EDGES) + 1)[1:-1]
    if not energies.sum() > 1e-9 * len(padded):
        return None
    levels = 10 * np.log10(energies / energies.sum() + 1e-9)
    return bytes(np.round((levels.clip(_FLOOR, 0) - _FLOOR) / _STEP).astype(np.uint8))


def similar_spectra(spectra: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield each pair i < j of recordings with nearly the same spectrum, in order."""
    levels = np.frombuffer(b"".join(spectra), np.uint8).reshape(len(spectra), -1).astype(np.float32) * _STEP
    squares = (levels**2).sum(axis=1)  # [N]
    limit = SPECTRUM_DISTANCE**2 * levels.shape[1]
    for start in range(0, len(levels), 256):
        rows = levels[start : start + 256]
        distances = squares[start : start + 256, None] + squares - 2 * rows @ levels.T
        for i, j in np.argwhere(distances < limit):
            if start + i < j:
                yield int(start + i), int(j)


def waveform_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The highest correlation, 0 to 1, of the loudest part of the shorter sound [S] with any part of the other."""
    short, long = sorted((a, b), key=len)
    excerpt = _loudest_part(short.astype(np.float64))
    size = len(excerpt)
    long = np.pad(long.astype(np.float64), size // 2)
    fft_size = 1 << (len(long) + size - 1).bit_length()
    product = np.fft.rfft(long, fft_size) * np.fft.rfft(excerpt, fft_size).conj()
    correlation = np.abs(np.fft.irfft(product, fft_size * _OVERSAMPLING)) * _OVERSAMPLING
    correlation = correlation[: (len(long) - size + 1) * _OVERSAMPLING].reshape(-1, _OVERSAMPLING).max(axis=1)
    energies = _moving_sum(long**2, size)
    is_loud = energies > 0.25 * energies.max()
    norms = np.sqrt(energies[is_loud] * (excerpt**2).sum())
    return min(1.0, float((correlation[is_loud] / norms).max(initial=0.0))) if norms.all() else 0.0


def is_copy(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sounds [S] at `RATE` with nearly the same spectrum are copies of one recording.

    Periodic sounds of the same pitch correlate even if they are different, so copies of them have to correlate more.
    """
    low, high = SAME_WAVEFORM
    if min(len(a), len(b)) < MIN_SAMPLES or (similarity := waveform_similarity(a, b)) < low:
        return False
    return similarity > low + (high - low) * min(periodicity(a), periodicity(b))


def periodicity(wav: np.ndarray) -> float:
    """The correlation, 0 to 1, of the loudest part of a sound [S] with the same sound some periods later."""
    excerpt = _loudest_part(wav.astype(np.float64))
    size, fft_size = len(excerpt), 1 << (2 * len(excerpt)).bit_length()
    products = np.abs(np.fft.irfft(np.abs(np.fft.rfft(excerpt, fft_size)) ** 2, fft_size)[: size // 2])
    energy = np.concatenate([[0.0], np.cumsum(excerpt**2)])
    lags = np.arange(size // 2)
    correlation = products / np.sqrt(energy[size - lags] * (energy[size] - energy[lags]) + 1e-12)
    (other,) = np.nonzero(correlation < 0.5)  # the first peak, at lag 0, ends here
    return float(correlation[other[0] :].max()) if len(other) else 1.0


def _loudest_part(wav: np.ndarray) -> np.ndarray:
    if len(wav) <= _EXCERPT:
        return wav
    start = int(_moving_sum(wav**2, _EXCERPT).argmax())
    return wav[start : start + _EXCERPT]


def _moving_sum(values: np.ndarray, size: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(sums[size:] - sums[:-size])
