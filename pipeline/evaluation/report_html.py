"""The listening page: one HTML file with its sounds inside, which any browser plays offline."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from markupsafe import Markup

from pipeline.audio.spectrogram import spectrogram
from pipeline.evaluation import tables
from pipeline.evaluation.report_sections import ReportSection
from pipeline.evaluation.svg_plots import Curve, plot
from pipeline.evaluation.templates import render

STYLE = Markup((Path(__file__).parent / "report.css").read_text())
SCRIPT = Markup((Path(__file__).parent / "report.js").read_text())


def render_report(
    title: str, facts: Mapping[str, str], sections: Sequence[ReportSection], rate: int,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None, hint: str,
) -> str:  # fmt: skip
    """The whole page.

    Args:
        title: the run's name.
        facts: what is listed at its head.
        sections: its sections of sounds.
        rate: of the sounds, in Hz.
        metrics: rows of metrics.jsonl.
        evaluation: figures of pipeline.evaluate.
        hint: how to get these, where there are none.
    """
    return render(
        "report.html", title=title, facts=facts, sections=sections, rate=rate, plots=_plots(metrics, evaluation),
        evaluation=evaluation, hint=hint, style=STYLE, script=SCRIPT, flac=flac_data_uri,
        picture=lambda wav: png_data_uri(spectrogram(wav)),
    )  # fmt: skip


def _plots(metrics: Sequence[Mapping[str, Any]], told: Mapping[str, Any] | None) -> list[Markup]:
    """Training's curves, and the figures of an evaluation where there are any."""
    plots = []
    curves = []
    for name in ("train/loss", "val/loss"):
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        curves += [Curve(name, points)] if points else []
    if curves:
        levels = [("unigram", told["loss"]["unigram"]["nats"])] if told else []
        plots.append(plot("Loss (nats a code)", "step", curves, levels))
    if told is not None:
        names = {**tables.PROMPT_METRICS, **tables.SET_METRICS}
        plots += [_by_temperature(names[name], name, told) for name in names if name in _known(told)]
    return plots


def _known(told: Mapping[str, Any]) -> set[str]:
    """The figures that were measured at some temperature, and of the codec's reconstructions."""
    return set(told["ceiling"]) & set().union(*told["temperatures"].values())


def _by_temperature(title: str, name: str, told: Mapping[str, Any]) -> Markup:
    scale = 100 if name in tables.PERCENT_METRICS else 1
    rows = [(float(t), row[name]) for t, row in told["temperatures"].items() if name in row]
    found = sorted(rows, key=lambda row: row[0])
    points = [(t, scale * row["mean"]) for t, row in found]
    intervals = [(scale * row["interval"][0], scale * row["interval"][1]) for _, row in found if "interval" in row]
    levels = [
        (label, scale * told[label][name]["mean"]) for label in ("floor", "ceiling") if name in told.get(label, {})
    ]
    return plot(title, "temperature", [Curve("", points, intervals)], levels)


def flac_data_uri(wav: np.ndarray, rate: int) -> Markup:
    """A sound as a data URI: FLAC, which every browser of these years plays, half the size of WAV and as exact."""
    content = io.BytesIO()
    soundfile.write(content, wav.clip(-1, 1), rate, format="FLAC")
    return Markup("data:audio/flac;base64," + base64.b64encode(content.getvalue()).decode())


def png_data_uri(picture: np.ndarray) -> Markup:
    """A picture uint8 [H, W, 3] as a data URI."""
    height, width = picture.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, width * 3)], 1)  # no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return Markup("data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode())
