"""HTML of sounds: a spectrogram that plays when clicked, the waveform below it, and a player.

Letters: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.audio.spectrogram import spectrogram
from pipeline.evaluation.html_templates import LabeledAudio, flac_data_uri, macros, png_data_uri

COLUMNS = 240  # points of a waveform
_CARDS = macros("cards.html")


def row(title: str, sounds: Sequence[LabeledAudio], rate: int, wide: bool = False) -> str:
    """Return the HTML of a row of sounds, with the audio as data URIs. wide: each sound is as wide as the page."""
    return str(
        _CARDS.row(title, sounds, rate, wide, lambda wav: png_data_uri(spectrogram(wav)), outline, flac_data_uri)
    )


def outline(wav: np.ndarray) -> tuple[str, int]:
    """Return the points of an SVG polygon around the waveform wav, [S] or [S, 2], and its number of columns.

    Each column covers the range from the lowest to the highest of its samples, of all channels.
    """
    top_wav, bottom_wav = (wav, wav) if wav.ndim == 1 else (wav.max(axis=1), wav.min(axis=1))
    edges = np.linspace(0, len(wav), min(COLUMNS, len(wav)) + 1).astype(int)[:-1]
    high, low = np.maximum.reduceat(top_wav, edges), np.minimum.reduceat(bottom_wav, edges)
    top = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(high.clip(-1, 1))]
    bottom = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(low.clip(-1, 1))]
    return " ".join(top + bottom[::-1]), len(edges)


def stream_player(name: str, seconds: float) -> str:
    """Return the HTML of the player of a sound that is being generated."""
    return str(_CARDS.stream_player(name, seconds))


def command(text: str) -> str:
    """Return the HTML of the command line that generates the same sounds."""
    return str(_CARDS.command(text))


def note(text: str) -> str:
    """Return the HTML of a line of text."""
    return str(_CARDS.note(text))
