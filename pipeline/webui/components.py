"""Sounds as the page shows them: a spectrogram that plays when pressed, the waveform below it, and a player.

Letters: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.audio.spectrogram import spectrogram
from pipeline.evaluation.html_templates import macros
from pipeline.evaluation.report_html import flac_data_uri, png_data_uri
from pipeline.evaluation.report_sections import LabeledAudio

COLUMNS = 240  # of a waveform
_CARDS = macros("cards.html")


def row(title: str, sounds: Sequence[LabeledAudio], rate: int, wide: bool = False) -> str:
    """Sounds side by side, inside the text itself; wide: each as broad as the page. Nothing is left on the server."""
    return str(
        _CARDS.row(title, sounds, rate, wide, lambda wav: png_data_uri(spectrogram(wav)), outline, flac_data_uri)
    )


def outline(wav: np.ndarray) -> tuple[str, int]:
    """The points of the outline of [S], one column a stretch: its lowest and highest sample; and how many columns."""
    edges = np.linspace(0, len(wav), min(COLUMNS, len(wav)) + 1).astype(int)[:-1]
    high, low = np.maximum.reduceat(wav, edges), np.minimum.reduceat(wav, edges)
    top = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(high.clip(-1, 1))]
    bottom = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(low.clip(-1, 1))]
    return " ".join(top + bottom[::-1]), len(edges)


def on_air(name: str, seconds: float) -> str:
    """The player of a sound that is being made."""
    return str(_CARDS.on_air(name, seconds))


def command(text: str) -> str:
    """The command line that makes the same."""
    return str(_CARDS.command(text))


def note(text: str) -> str:
    """A line that says something."""
    return str(_CARDS.note(text))
