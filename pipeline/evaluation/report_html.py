"""The report as one HTML file that contains its sounds, so that any browser plays it offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from markupsafe import Markup
from PIL import Image

from pipeline.audio.spectrogram import spectrogram
from pipeline.evaluation import console_tables
from pipeline.evaluation.html_templates import render
from pipeline.evaluation.report_sections import ReportSection
from pipeline.evaluation.svg_plots import Curve, plot

STYLE = Markup((Path(__file__).parent / "report.css").read_text())
SCRIPT = Markup((Path(__file__).parent / "report.js").read_text())


def render_report(
    title: str, facts: Mapping[str, str], sections: Sequence[ReportSection], rate: int,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None, hint: str,
) -> str:  # fmt: skip
    """Render the report.

    Args:
        title: The run's name.
        facts: Facts at the head of the page, by title.
        sections: The sections of sounds.
        rate: The sample rate of the sounds, in Hz.
        metrics: The rows of metrics.jsonl.
        evaluation: The content of evaluate.json, or None.
        hint: Shown if there is no evaluation: how to run it.

    Returns:
        The page's HTML.
    """
    return render(
        "report.html", title=title, facts=facts, sections=sections, rate=rate, plots=_plots(metrics, evaluation),
        evaluation=evaluation, hint=hint, style=STYLE, script=SCRIPT, flac=flac_data_uri,
        picture=lambda wav: png_data_uri(spectrogram(wav)),
    )  # fmt: skip


def _plots(metrics: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None) -> list[Markup]:
    """The training curves, and the metrics of an evaluation by temperature."""
    plots = []
    curves = []
    for name in ("train/loss", "val/loss"):
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        curves += [Curve(name, points)] if points else []
    if curves:
        levels = [("unigram", evaluation["loss"]["unigram"]["nats"])] if evaluation else []
        plots.append(plot("Loss (nats per code)", "step", curves, levels))
    if evaluation is not None:
        measured = _measured(evaluation)
        titles = {**console_tables.PROMPT_METRICS, **console_tables.SET_METRICS}
        plots += [_plot_metric(titles[name], name, evaluation) for name in titles if name in measured]
    return plots


def _measured(evaluation: Mapping[str, Any]) -> set[str]:
    """The metrics that were measured at some temperature and on the codec's reconstructions."""
    return set(evaluation["ceiling"]) & set().union(*evaluation["temperatures"].values())


def _plot_metric(title: str, name: str, evaluation: Mapping[str, Any]) -> Markup:
    """A metric by temperature, with its floor and its ceiling."""
    scale = 100 if name in console_tables.PERCENT_METRICS else 1
    rows = [(float(temperature), row[name]) for temperature, row in evaluation["temperatures"].items() if name in row]
    rows = sorted(rows, key=lambda row: row[0])
    points = [(temperature, scale * value["mean"]) for temperature, value in rows]
    intervals = [(scale * v["interval"][0], scale * v["interval"][1]) for _, v in rows if "interval" in v]
    levels = [
        (label, scale * evaluation[label][name]["mean"])
        for label in ("floor", "ceiling")
        if name in evaluation.get(label, {})
    ]
    return plot(title, "temperature", [Curve("", points, intervals)], levels)


def flac_data_uri(wav: np.ndarray, rate: int) -> Markup:
    """A sound as a data URI in FLAC, which is lossless, half the size of WAV, and supported by all current browsers."""
    content = io.BytesIO()
    soundfile.write(content, wav.clip(-1, 1), rate, format="FLAC")
    return Markup("data:audio/flac;base64," + base64.b64encode(content.getvalue()).decode())


def png_data_uri(image: np.ndarray) -> Markup:
    """An image, uint8 [H, W, 3], as a data URI in PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(content.getvalue()).decode())
