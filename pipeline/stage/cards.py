"""Sounds as the page shows them: a spectrogram that plays when pressed, the waveform below it, and a player.

Letters: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from pipeline.listen.page import flac, png
from pipeline.listen.studies import Sound
from pipeline.track.media import spectrogram

COLUMNS = 240  # of a waveform


def row(title: str, sounds: Sequence[Sound], rate: int, wide: bool = False) -> str:
    """Sounds side by side; wide: each as broad as the page."""
    cards = "".join(card(sound, rate) for sound in sounds)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<section class="sounds{" wide" if wide else ""}">{heading}<div>{cards}</div></section>'


def card(sound: Sound, rate: int) -> str:
    """One sound, inside the text itself: nothing is left behind on the server."""
    label = escape(sound.label)
    return (
        f'<figure class="sound"><button type="button" aria-label="Play: {label}">'
        f'<img alt="" src="{png(spectrogram(sound.wav))}">{waveform(sound.wav)}<i></i></button>'
        f"<figcaption>{label} <small>{len(sound.wav) / rate:.1f} s</small></figcaption>"
        f'<audio controls preload="metadata" src="{flac(sound.wav, rate)}"></audio></figure>'
    )


def waveform(wav: np.ndarray) -> str:
    """The outline of [S] as SVG, one column a stretch: its lowest and highest sample."""
    edges = np.linspace(0, len(wav), min(COLUMNS, len(wav)) + 1).astype(int)[:-1]
    high, low = np.maximum.reduceat(wav, edges), np.minimum.reduceat(wav, edges)
    top = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(high.clip(-1, 1))]
    bottom = [f"{x},{50 - 50 * y:.0f}" for x, y in enumerate(low.clip(-1, 1))]
    points = " ".join(top + bottom[::-1])
    return f'<svg viewBox="0 0 {len(edges)} 100" preserveAspectRatio="none"><polygon points="{points}"/></svg>'


def on_air(name: str, seconds: float) -> str:
    """The player of a sound that is being made."""
    return (
        f'<div class="onair"><span>On air while it is made: {seconds:g} s</span>'
        f'<audio controls autoplay src="live/{escape(name)}.wav"></audio></div>'
    )


def command(text: str) -> str:
    """The command line that makes the same."""
    return (
        '<details class="command"><summary>The same on the command line, beside the downloaded files</summary>'
        f"<pre>{escape(text)}</pre></details>"
    )


def note(text: str) -> str:
    """A line that says something."""
    return f'<p class="note">{escape(text)}</p>'
