"""The page of a listening test: one HTML file with its sounds, which needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pipeline.common.errors import redact
from pipeline.evaluation.html_templates import render, wav_data_uri
from pipeline.evaluation.listening.key import ListeningKey, short_hash
from pipeline.evaluation.listening.stimuli import REFERENCE, Stimuli, make_stimuli
from pipeline.evaluation.report_builder import Report
from pipeline.evaluation.run_folder import training_shards
from pipeline.evaluation.settings import ReportSettings

_STYLE, _SCRIPT = (Markup((Path(__file__).parent / f"page.{suffix}").read_text()) for suffix in ("css", "js"))


def build_listening_test(settings: ReportSettings, on_status: Callable[[str], None]) -> Report:
    """Build the page of a listening test.

    Args:
        settings: The models, the clips, and the question.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: As of `make_stimuli`.
    """
    shards = training_shards(Path(settings.run)) if settings.shards == "auto" else settings.shards
    stimuli = make_stimuli(settings, shards, on_status)
    sounds, rated = sum(len(wavs) for _, wavs in stimuli.trials), len(stimuli.trials) - 1
    notes = (
        []
        if rated == settings.n
        else [f"n={settings.n}: {settings.split} has only {rated} clips, and one for practice"]
    )
    return Report(render_listening_test(stimuli, redact(settings.question)), sounds, notes)


def render_listening_test(stimuli: Stimuli, question: str) -> str:
    """Render the page.

    Args:
        stimuli: The sounds.
        question: What listeners are asked about each sound.
    """
    trials, names = [], []
    sounds: dict[str, str] = {}
    for clip, wavs in stimuli.trials:
        contents = {title: _base64_wav(wav, stimuli.rate) for title, wav in wavs.items()}
        titles = {short_hash(clip, title, content): title for title, content in contents.items()}
        reference = short_hash(clip, "reference to compare with", contents[REFERENCE])
        sounds |= {name: contents[title] for name, title in titles.items()} | {reference: contents[REFERENCE]}
        trials.append({"reference": reference, "sounds": sorted(titles)})  # sorted by hash: says nothing
        names.append(titles)
    key = ListeningKey(
        question=question,
        conditions=dict(stimuli.roles),
        clips=[clip for clip, _ in stimuli.trials[1:]],
        trials=names[1:],
        details=dict(stimuli.details),
    ).encode()
    data = {"page": short_hash(key), "key": key, "question": question, "trials": trials, "sounds": sounds}
    return render("listening_test.html", data=data, own=_STYLE, code=_SCRIPT, source=_csp_source)


def _base64_wav(wav: np.ndarray, rate: int) -> str:
    return str(wav_data_uri(wav, rate)).partition(",")[2]


def _csp_source(text: str) -> Markup:
    """The source of a Content-Security-Policy that allows one inline script or style."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
