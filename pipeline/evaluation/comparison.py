"""Comparison of runs: what they have learned, at what cost, and how fast they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pipeline.common.metrics_file import read_metrics
from pipeline.common.settings import require_min
from pipeline.evaluation.console_tables import format_metric
from pipeline.evaluation.evaluator import evaluate
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.generation.settings import sampling_settings
from pipeline.models import model_stats

COLUMNS = {
    "run": "run",
    "pattern": "pattern",
    "codec": "codec",
    "codebooks": "codebooks",
    "steps": "steps",
    "petaflop": "training (PFLOP)",
    "training": "codes/s in training",
    "bits": "validation (bits/s)",
    "temperature": "temperature",
    "fidelity": "fidelity",
    "pitch": "pitch (%)",
    "generation": "codes/s in generation",
}


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: One per run and temperature, with the keys of `COLUMNS`.
        evaluations: The content of each run's `evaluate.json`, by run folder.
    """

    rows: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]


def compare(settings: Mapping[str, Any], on_status: Callable[[str], None]) -> Comparison:
    """Evaluate several runs on the same clips.

    Args:
        settings: Those of conf/compare.yaml.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: As of `evaluate`.
    """
    require_min(1, settings, "benchmark_batch")
    rows, evaluations = [], {}
    for folder in map(Path, dict.fromkeys(settings["runs"])):
        run = load_run(folder, settings["device"], settings["codec_weights"], settings["embedder_weights"])
        evaluation = evaluate(settings, run, lambda line, folder=folder: on_status(f"{folder}: {line}"))  # type: ignore[misc]
        results = evaluations[str(folder)] = evaluation.results
        frames = [clip.codes.shape[1] for clip in evaluation.clips]
        codes_per_second = generation_rate(
            run, max(frames), settings["benchmark_batch"], results["settings"]["sampling"]
        )
        stats = training_stats(folder, run, statistics.mean(frames))
        for temperature, row in results["temperatures"].items():
            rows.append(
                {
                    "run": str(folder),
                    "pattern": run.model.config.pattern,
                    "codec": run.codec.name,
                    "codebooks": run.model.config.codebooks,
                    "bits": results["loss"]["model"]["bits_second"],
                    "temperature": float(temperature),
                    "fidelity": row["fidelity"],
                    "pitch": row.get("pitch"),
                    "generation": codes_per_second,
                    **stats,
                }
            )
    return Comparison(rows, evaluations)


def comparability_warning(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the results of the runs cannot be compared, or None if they can."""
    differing = [name for name in ("codec", "codebooks") if len({row[name] for row in rows}) > 1]
    if not differing:
        return None
    return (
        f"the runs differ in {' and '.join(differing)}: bits and codes per second count the codes of all codebooks, "
        "and fidelity and pitch have other ceilings; compare only runs that have these in common"
    )


def training_stats(folder: Path, run: LoadedRun, frames: float) -> dict[str, float | None]:
    """Steps, compute and speed of a training, from its log; None where the log does not have them.

    Args:
        folder: The run folder.
        run: The run.
        frames: The mean length of a clip.
    """
    rows = [row for row in read_metrics(folder) if "train/clips" in row and "speed/codes_per_second" in row]
    if not rows:
        return {"steps": None, "petaflop": None, "training": None}
    after_warmup = rows[len(rows) // 4 :]
    return {
        "steps": rows[-1]["step"],
        "petaflop": rows[-1]["train/clips"] * model_stats.training_flops(run.model.config, frames) / 1e15,
        "training": statistics.median(row["speed/codes_per_second"] for row in after_warmup),
    }


def generation_rate(run: LoadedRun, frames: int, clips: int, sampling: Mapping[str, Any]) -> float:
    """Codes generated per second with this many clips at once: the better of two measurements."""
    best = float("inf")
    params = sampling_settings(**{**sampling, "temperature": 1})
    prompts = torch.zeros(clips, run.model.config.prompt_dim)
    for _ in range(2):
        started = time.perf_counter()
        generate(run.engine, prompts, frames, params, range(clips))
        best = min(best, time.perf_counter() - started)
    return clips * frames * run.model.config.codebooks / best


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, with a warning below it if the runs cannot be compared."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(format_row(row)) + " |" for row in rows]
    warning = comparability_warning(rows)
    return "\n".join([*lines, *(["", f"Warning: {warning}."] if warning else [])]) + "\n"


def format_row(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row's cells, in the order of `COLUMNS`."""
    cells = []
    for name in COLUMNS:
        value = row[name]
        if value is None:
            cells.append("-")
        elif isinstance(value, Mapping):
            cells.append(format_metric(value, name == "pitch"))
        elif isinstance(value, float):
            cells.append(f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
        else:
            cells.append(str(value))
    return cells


def console_table(comparison: Comparison, split: str) -> Table:
    """The table for a terminal: one column per row of the comparison, because a terminal is narrow."""
    runs = len(comparison.evaluations)
    clips = next(iter(comparison.evaluations.values()))["settings"]["n"]  # fewer than n= if the split is small
    title = f"{runs} run{'s' * (runs > 1)}, {clips} clip{'s' * (clips > 1)} of {split}"
    table = Table(title=title, title_justify="left", show_header=False)
    for cells in zip(COLUMNS.values(), *map(format_row, comparison.rows), strict=True):
        table.add_row(*cells)
    return table
