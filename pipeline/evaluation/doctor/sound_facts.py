"""Facts about one sound: its level, silence, clipping and spectrum.

Letters: S samples, F frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.audio.amplitude import mix_sound
from pipeline.audio.metrics import magnitudes
from pipeline.evaluation.metrics.silence import QUIET

FULL_SCALE = 0.99
TREBLE_DB = -50.0  # relative to the loudest frequency: weaker ones do not count as bandwidth
CLIFF_DB = 12.0  # a drop of the spectrum by so much, for good, that is no slope of an instrument
CLIFF_BAND, CLIFF_WIDTH, LOWEST_CLIFF = 1500, 700, 3000  # Hz: of the band before it, of the drop, of its place
_FRAME = 0.05  # seconds over which the level is measured


@dataclass(frozen=True)
class SoundFacts:
    """Facts about a sound.

    Attributes:
        level: The RMS of what is not silent in dBFS, NaN if all is.
        silence: The fraction of the time below -60 dBFS.
        at_full_scale: The fraction of samples at or above 99 % of full scale.
        bandwidth: The highest frequency in Hz that comes within 50 dB of the loudest, 0 in silence.
        spectrum: The mean level of each frequency from 0 to half the rate, in dB below the loudest: [F].
    """

    level: float
    silence: float
    at_full_scale: float
    bandwidth: float
    spectrum: np.ndarray


def sound_facts(wav: np.ndarray, rate: int) -> SoundFacts:
    """Measure a sound, [S] or [S, 2], S > 0, of a sample rate in Hz; of two channels their mono mix."""
    full_scale = (np.abs(wav) >= FULL_SCALE).mean()
    wav = mix_sound(wav)
    size = max(1, min(len(wav), round(_FRAME * rate)))
    power = np.square(wav[: len(wav) // size * size], dtype=np.float64).reshape(-1, size).mean(1)
    is_silent = power < QUIET**2
    level = float("nan") if is_silent.all() else float(10 * np.log10(power[~is_silent].mean()))
    spectrum = magnitudes(wav)
    spectrum = spectrum[2:-2] if len(spectrum) > 4 else spectrum  # without the click of an abrupt start or end
    highest = spectrum.max(0)  # of each frequency over time
    audible = np.flatnonzero(highest > max(highest.max() * 10 ** (TREBLE_DB / 20), 1e-9))
    bandwidth = audible[-1] / (len(highest) - 1) * rate / 2 if len(audible) else 0.0
    mean = 10 * np.log10(np.square(spectrum, dtype=np.float64).mean(0) + 1e-15)
    return SoundFacts(level, float(is_silent.mean()), float(full_scale), float(bandwidth), mean - mean.max())


def find_cliff(spectrum: np.ndarray, rate: int) -> float | None:
    """The frequency in Hz after which a spectrum, dB [F], drops as by a filter, and stays low; None if it does not."""
    hertz = rate / 2 / (len(spectrum) - 1)
    band, width = round(CLIFF_BAND / hertz), round(CLIFF_WIDTH / hertz)
    before = np.convolve(spectrum, np.ones(band) / band, "valid")[: -width - 1]  # up to bin i + band - 1
    after = np.maximum.accumulate(spectrum[::-1])[::-1][band + width :]  # the loudest from `width` after it on
    drops = before[: len(after)] - after[: len(before)]
    drops[: max(0, round(LOWEST_CLIFF / hertz) - band)] = 0
    steepest = int(drops.argmax())
    return (steepest + band - 1) * hertz if drops[steepest] > CLIFF_DB else None
