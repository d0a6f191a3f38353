"""Figures on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PROMPT_METRICS = {"fidelity": "prompt fidelity", "pitch": "pitch (%)", "pitch_class": "pitch class (%)"}
SET_METRICS = {
    "distance": "Fréchet",
    "different": "different",
    "silent": "silent (%)",
    "looping": "loops (%)",
}
PERCENT_METRICS = {"pitch", "pitch_class", "silent", "looping"}


def print_evaluation(told: dict[str, Any], out: Path) -> None:
    """Print what `evaluate.json` holds, and where to listen."""
    console, settings, distance = Console(), told["settings"], told["distance"]
    console.print(loss_table(told["loss"]))
    console.print(metrics_table(told, PROMPT_METRICS, f"generated from {settings['n']} clips' prompts"))
    console.print(metrics_table(told, SET_METRICS, "as a whole"))
    told_of = f"{distance['embedding']['name']} embeddings, {distance['n']} clips of {distance['reference']}"
    console.print(f"in brackets: 95 % over {settings['n']} clips; Fréchet distance: {told_of}", highlight=False)
    console.print(f"listen: {out}/*.wav   figures: {out}/evaluate.json", highlight=False, soft_wrap=True)


def loss_table(told: dict[str, Any]) -> Table:
    """The loss beside its baselines."""
    table = Table(title=f"loss over {told['clips']} clips (nats a code)", title_justify="left")
    table.add_column("")
    table.add_column("all", justify="right")
    for k in range(len(told["model"]["nats_codebook"])):
        table.add_column(f"book {k + 1}", justify="right")
    table.add_column("bits/s", justify="right")
    for name in ("model", "unigram", "uniform"):
        row = told[name]
        each = (f"{nats:.3f}" for nats in row["nats_codebook"])
        table.add_row(name, f"{row['nats']:.3f}", *each, f"{row['bits_second']:.0f}")
    return table


def metrics_table(told: dict[str, Any], names: dict[str, str], title: str) -> Table:
    """A row a temperature, between floor and ceiling; a column a figure."""
    rows = {"floor": told["floor"]}
    rows |= {f"temperature {t}": row for t, row in told["temperatures"].items()}
    rows |= {"ceiling (codec)": told["ceiling"]}
    table = Table(title=title, title_justify="left")
    table.add_column("")
    known = [name for name in names if name in told["ceiling"]]
    for name in known:
        table.add_column(names[name], justify="right")
    for label, row in rows.items():
        if any(name in row for name in known):
            table.add_row(label, *(format_metric(row.get(name), name in PERCENT_METRICS) for name in known))
    return table


def format_metric(told: Mapping[str, Any] | None, share: bool) -> str:
    """A figure with its interval."""
    if told is None:
        return "-"
    scale, digits = (100, 0) if share else (1, 3 if abs(told["mean"]) < 10 else 1)
    text = f"{scale * told['mean']:.{digits}f}"
    if "interval" in told:
        low, high = (scale * edge for edge in told["interval"])
        text += f" [{low:.{digits}f}..{high:.{digits}f}]"
    return text
