"""The listening page: one HTML file with its sounds inside, which any browser plays offline."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipeline.listen import tables
from pipeline.listen.plots import Curve, plot
from pipeline.listen.studies import Row, Study
from pipeline.track.media import spectrogram

STYLE = (Path(__file__).parent / "page.css").read_text()
SCRIPT = (Path(__file__).parent / "page.js").read_text()


def page(
    title: str, facts: Mapping[str, str], studies: Sequence[Study], rate: int, metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None, hint: str,
) -> str:  # fmt: skip
    """The whole page. metrics: rows of metrics.jsonl; evaluation: evaluate.json; hint: what would add it."""
    told = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    parts = [f"<header><h1>{escape(title)}</h1><dl>{told}</dl></header>", _figures(metrics, evaluation, hint)]
    parts += [_study(study, rate) for study in studies]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><main>{''.join(parts)}</main>"
        f"<script>{SCRIPT}</script></html>\n"
    )


def _study(study: Study, rate: int) -> str:
    rows = "".join(_row(row, rate) for row in study.rows)
    return f"<section><h2>{escape(study.title)}</h2><p>{escape(study.text)}</p>{rows}</section>"


def _row(row: Row, rate: int) -> str:
    sounds = "".join(_sound(sound.label, sound.wav, rate) for sound in row.sounds)
    return f"<h3>{escape(row.title)}</h3><div class=row>{sounds}</div>"


def _sound(label: str, wav: np.ndarray, rate: int) -> str:
    """A spectrogram that plays when it is pressed."""
    seconds = len(wav) / rate
    wide = " wide" if seconds > 12 else ""
    return (
        f'<figure class="sound{wide}"><button aria-label="Play: {escape(label)}">'
        f'<img alt="" src="{png(spectrogram(wav))}"><i></i></button>'
        f"<figcaption>{escape(label)} <small>{seconds:.1f} s</small></figcaption>"
        f'<audio controls preload="none" src="{flac(wav, rate)}"></audio></figure>'
    )


def _figures(metrics: Sequence[Mapping[str, Any]], told: Mapping[str, Any] | None, hint: str) -> str:
    """Training's curves, and the figures of an evaluation where there are any."""
    plots = []
    curves = []
    for name in ("train/loss", "val/loss"):
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        curves += [Curve(name, points)] if points else []
    if curves:
        levels = [("unigram", told["loss"]["unigram"]["nats"])] if told else []
        plots.append(plot("Loss (nats a code)", "step", curves, levels))
    if told is None:
        return f"<section><h2>Figures</h2><div class=plots>{''.join(plots)}</div><p>{escape(hint)}</p></section>"
    settings, distance = told["settings"], told["distance"]
    names = {**tables.NEAR, **tables.SPREAD}
    plots += [_by_temperature(names[name], name, told) for name in names if name in told["ceiling"]]
    text = (
        f"{settings['n']} clips of {settings['split']} by pipeline.evaluate, guidance "
        f"{settings['sampling']['guidance']:g}; bars: 95 % by bootstrap over clips. Ceiling: the codec's "
        f"reconstruction of the clips; floor: other clips. Fréchet distance on {distance['embedding']['name']} "
        f"embeddings to {distance['n']} clips."
    )
    shown = f"<div class=plots>{''.join(plots)}</div>{_losses(told)}"
    return f"<section><h2>Figures</h2><p>{escape(text)}</p>{shown}</section>"


def _by_temperature(title: str, name: str, told: Mapping[str, Any]) -> str:
    scale = 100 if name in tables.SHARES else 1
    found = sorted((float(t), row[name]) for t, row in told["temperatures"].items())
    points = [(t, scale * row["mean"]) for t, row in found]
    intervals = [(scale * row["interval"][0], scale * row["interval"][1]) for _, row in found if "interval" in row]
    levels = [
        (label, scale * told[label][name]["mean"]) for label in ("floor", "ceiling") if name in told.get(label, {})
    ]
    return plot(title, "temperature", [Curve("", points, intervals)], levels)


def _losses(told: Mapping[str, Any]) -> str:
    loss = told["loss"]
    books = range(1, len(loss["model"]["nats_codebook"]) + 1)
    head = "".join(f"<th>codebook {k}" for k in books)
    rows = "".join(
        f"<tr><th>{name}<td>{loss[name]['nats']:.3f}{''.join(f'<td>{x:.3f}' for x in loss[name]['nats_codebook'])}"
        f"<td>{loss[name]['bits_second']:.0f}"
        for name in ("model", "unigram", "uniform")
    )
    caption = f"Loss over {loss['clips']} clips, nats a code"
    return f"<table><caption>{caption}</caption><tr><th><th>all{head}<th>bits/s{rows}</table>"


def flac(wav: np.ndarray, rate: int) -> str:
    """A sound as a data URI: FLAC, which every browser of these years plays, half the size of WAV and as exact."""
    content = io.BytesIO()
    soundfile.write(content, wav.clip(-1, 1), rate, format="FLAC")
    return "data:audio/flac;base64," + base64.b64encode(content.getvalue()).decode()


def png(picture: np.ndarray) -> str:
    """A picture uint8 [H, W, 3] as a data URI."""
    height, width = picture.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, width * 3)], 1)  # no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()
