"""HTML from Jinja2 templates, which escape every value and redact secrets in it, with sounds and pictures inside.

Templates have `wav_uri(wav, rate)` and `picture(wav)`, which return data URIs, what `sound_view` computes for the
players of sounds, and `style` and `script` of pages that are files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pipeline.audio.spectrogram import spectrogram
from pipeline.common.errors import redact
from pipeline.evaluation import sound_view

FOLDER = Path(__file__).parent / "templates"
SOUND_STYLE, SOUND_SCRIPT = ((FOLDER.parent / name).read_text() for name in ("sound.css", "sound.js"))


@dataclass(frozen=True)
class LabeledAudio:
    """A sound, wav [S] or [S, 2], and the label below it."""

    label: str
    wav: np.ndarray


@dataclass(frozen=True)
class AudioRow:
    """Sounds next to each other."""

    title: str
    sounds: list[LabeledAudio]


@dataclass(frozen=True)
class SectionContent:
    """The content of a section: a text, then HTML, then rows of sounds."""

    text: str = ""
    html: Markup = field(default_factory=Markup)
    rows: list[AudioRow] = field(default_factory=list)


def render(template: str, **values: Any) -> Markup:
    """Render a template of `FOLDER`. Only values of type `Markup` are inserted as HTML."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def render_report(title: str, facts: Mapping[str, str], sections: Mapping[str, SectionContent], rate: int) -> str:
    """Render the report.

    Args:
        title: The run's name.
        facts: Facts at the head of the page, by title.
        sections: The contents of the sections, by title.
        rate: The sample rate of the sounds, in Hz.

    Returns:
        The page's HTML.
    """
    return render("report.html", title=title, facts=facts, sections=sections, rate=rate)


def render_table(caption: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Markup:
    """Render a table.

    Args:
        caption: Its title.
        headings: The headings of the columns, without that of the first one.
        rows: The cells of each row, by its title, which is in the first column.
    """
    return render("table.html", caption=caption, headings=headings, rows=rows)


def macros(template: str) -> Any:
    """The macros of a template, as functions that return HTML."""
    return _ENVIRONMENT.get_template(template).module


def wav_data_uri(wav: np.ndarray, rate: int) -> Markup:
    """A sound as a data URI in WAV: Chromium fails to seek near the end of FLAC files without a seek table."""
    content = io.BytesIO()
    soundfile.write(content, wav.clip(-1, 1), rate, format="WAV")
    return _data_uri("audio/wav", content)


def png_data_uri(image: np.ndarray) -> Markup:
    """An image, uint8 [H, W, 3], as a data URI in PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return _data_uri("image/png", content)


def _data_uri(kind: str, content: io.BytesIO) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}")


def _redact_text(value: Any) -> Any:
    return redact(value) if type(value) is str else value


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    finalize=_redact_text,
)  # fmt: skip
_ENVIRONMENT.globals |= {
    "wav_uri": wav_data_uri,
    "picture": lambda wav: png_data_uri(spectrogram(wav)),
    "outline": sound_view.outline,
    "columns": sound_view.COLUMNS,
    "time_ticks": sound_view.time_ticks,
    "frequency_ticks": sound_view.frequency_ticks,
    "style": Markup((FOLDER.parent / "style.css").read_text() + SOUND_STYLE),
    "script": Markup(SOUND_SCRIPT),
}
