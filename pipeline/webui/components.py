"""HTML of sounds: players in rows, and what is shown around them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.html_templates import LabeledAudio, macros

_CARDS = macros("cards.html")


def row(title: str, sounds: Sequence[LabeledAudio], rate: int, wide: bool = False) -> str:
    """Return the HTML of a row of sounds, with the audio as data URIs. wide: each sound is as wide as the page."""
    return str(_CARDS.row(title, sounds, rate, wide))


def stream_player(name: str, seconds: float) -> str:
    """Return the HTML of the player of a sound that is being generated."""
    return str(_CARDS.stream_player(name, seconds))


def command(text: str) -> str:
    """Return the HTML of the command line that generates the same sounds."""
    return str(_CARDS.command(text))


def note(text: str) -> str:
    """Return the HTML of what is going on, in the place of results."""
    return str(_CARDS.note(text))


def remark(text: str) -> str:
    """Return the HTML of a line of text below results."""
    return str(_CARDS.remark(text))


def empty(button: str) -> str:
    """Return the HTML that is shown in the place of results before there are any. button: what to press."""
    return str(_CARDS.empty(button))
