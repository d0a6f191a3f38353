"""Figures on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {"fidelity": "prompt fidelity", "pitch": "pitch", "pitch_class": "pitch class"}
SHARES = {"pitch", "pitch_class"}


def show(told: dict[str, Any], out: Path) -> None:
    """Print what `evaluate.json` holds, and where to listen."""
    console = Console()
    console.print(losses(told["loss"]))
    console.print(generations(told))
    console.print(f"listen: {out}/*.wav   figures: {out}/evaluate.json", highlight=False, soft_wrap=True)


def losses(told: dict[str, Any]) -> Table:
    """The loss beside its baselines."""
    table = Table(title=f"loss over {told['clips']} clips (nats a code)", title_justify="left")
    table.add_column("")
    table.add_column("all", justify="right")
    for k in range(len(told["model"]["nats_codebook"])):
        table.add_column(f"codebook {k + 1}", justify="right")
    table.add_column("bits/s", justify="right")
    for name in ("model", "unigram", "uniform"):
        row = told[name]
        table.add_row(
            name, f"{row['nats']:.3f}", *(f"{x:.3f}" for x in row["nats_codebook"]), f"{row['bits_second']:.0f}"
        )
    return table


def generations(told: dict[str, Any]) -> Table:
    """Fidelity and pitch at each temperature, between floor and ceiling."""
    rows = {"floor": told["floor"]}
    rows |= {f"temperature {t}": row for t, row in told["temperatures"].items()}
    rows |= {"ceiling (codec)": told["ceiling"]}
    names = [name for name in NAMES if name in told["ceiling"]]
    table = Table(title=f"generated from {told['settings']['n']} clips' prompts", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(NAMES[name] + (" (%)" if name in SHARES else ""), justify="right")
    for title, row in rows.items():
        table.add_row(title, *(_cell(row.get(name), name in SHARES) for name in names))
    return table


def _cell(told: dict[str, Any] | None, share: bool) -> str:
    if told is None:
        return "-"
    low, high = told["interval"]
    if share:
        return f"{100 * told['mean']:.0f} [{100 * low:.0f}..{100 * high:.0f}]"
    return f"{told['mean']:.3f} [{low:.3f}..{high:.3f}]"
