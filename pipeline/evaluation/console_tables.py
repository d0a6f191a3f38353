"""Tables of evaluation results on the terminal."""

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


def print_evaluation(results: Mapping[str, Any], out: Path) -> None:
    """Print the content of `evaluate.json`, and where the sounds are."""
    console, settings, distance = Console(), results["settings"], results["distance"]
    console.print(loss_table(results["loss"]))
    console.print(metrics_table(results, PROMPT_METRICS, f"generated from the prompts of {settings['n']} clips"))
    console.print(metrics_table(results, SET_METRICS, "all sounds together"))
    reference = f"{distance['embedding']['name']} embeddings, {distance['n']} clips of {distance['reference']}"
    note = f"in brackets: 95 % intervals over {settings['n']} clips; Fréchet distance: {reference}"
    console.print(note, highlight=False)
    console.print(f"sounds: {out}/*.wav   results: {out}/evaluate.json", highlight=False, soft_wrap=True)


def loss_table(losses: Mapping[str, Any]) -> Table:
    """The loss of the model and of the baselines."""
    table = Table(title=f"loss over {losses['clips']} clips (nats per code)", title_justify="left")
    table.add_column("")
    table.add_column("all", justify="right")
    for k in range(len(losses["model"]["nats_codebook"])):
        table.add_column(f"book {k + 1}", justify="right")
    table.add_column("bits/s", justify="right")
    for name in ("model", "unigram", "uniform"):
        row = losses[name]
        by_codebook = (f"{nats:.3f}" for nats in row["nats_codebook"])
        table.add_row(name, f"{row['nats']:.3f}", *by_codebook, f"{row['bits_second']:.0f}")
    return table


def metrics_table(results: Mapping[str, Any], titles: Mapping[str, str], title: str) -> Table:
    """A row per temperature between floor and ceiling; a column per metric. titles: the metrics' titles, by name."""
    rows = {"floor": results["floor"]}
    rows |= {f"temperature {temperature}": row for temperature, row in results["temperatures"].items()}
    rows |= {"ceiling (codec)": results["ceiling"]}
    table = Table(title=title, title_justify="left")
    table.add_column("")
    measured = [name for name in titles if name in results["ceiling"]]
    for name in measured:
        table.add_column(titles[name], justify="right")
    for label, row in rows.items():
        if any(name in row for name in measured):
            table.add_row(label, *(format_metric(row.get(name), name in PERCENT_METRICS) for name in measured))
    return table


def format_metric(value: Mapping[str, Any] | None, is_percent: bool) -> str:
    """A metric with its interval, or "-" if it was not measured."""
    if value is None:
        return "-"
    scale, digits = (100, 0) if is_percent else (1, 3 if abs(value["mean"]) < 10 else 1)
    text = f"{scale * value['mean']:.{digits}f}"
    if "interval" in value:
        low, high = (scale * edge for edge in value["interval"])
        text += f" [{low:.{digits}f}..{high:.{digits}f}]"
    return text
