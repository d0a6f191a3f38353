"""Comparison of runs: what they have learned, at what cost, and how fast they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipeline.common.errors import InputError
from pipeline.common.metrics_file import read_metrics
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.paper_table import PaperTable, build_table
from pipeline.evaluation.results import EvaluationResult, MetricValues
from pipeline.evaluation.run_folder import training_shards
from pipeline.evaluation.settings import CompareSettings
from pipeline.evaluation.tables import markdown_table, print_table
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.models import model_stats

FACTS = {
    "run": "run",
    "pattern": "pattern",
    "codec": "codec",
    "codebooks": "codebooks",
    "steps": "steps",
    "petaflop": "training (PFLOP)",
    "training": "codes/s in training",
    "generation": "codes/s in generation",
    "bits": "validation (bits/s)",
    "temperature": "temperature",
}  # titles by name in compare.json


@dataclass(frozen=True)
class ComparisonRow:
    """A run at a temperature.

    Attributes:
        facts: Values by the names of `FACTS`; None where unknown.
        metrics: The metrics by name.
    """

    facts: Mapping[str, str | float | None]
    metrics: MetricValues

    def format(self) -> dict[str, str]:
        """The texts of its cells by title."""
        facts = {title: _format_fact(self.facts[name]) for name, title in FACTS.items()}
        return facts | {metric.heading: metric.format(self.metrics.get(key)) for key, metric in list_metrics().items()}


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: One per run and temperature.
        evaluations: Each run's evaluation, by run folder.
        table: The table of a paper.
    """

    rows: list[ComparisonRow]
    evaluations: dict[str, EvaluationResult]
    table: PaperTable

    @property
    def warning(self) -> str | None:
        """Why the results of the runs cannot be compared, or None if they can."""
        differing = [name for name in ("codec", "codebooks") if len({row.facts[name] for row in self.rows}) > 1]
        if not differing:
            return None
        return (
            f"the runs differ in {' and '.join(differing)}: bits and codes per second count the codes of all "
            "codebooks, and metrics have other ceilings; compare only runs that have these in common"
        )

    @property
    def notes(self) -> list[str]:
        """Lines for the terminal below the table."""
        return [f"warning: {self.warning}"] if self.warning else []

    @property
    def best_run(self) -> str:
        """The run folder with the lowest validation loss in bits per second of audio."""
        return min(self.evaluations, key=lambda run: self.evaluations[run].loss.model.bits_second)

    def to_dict(self) -> dict[str, Any]:
        """The content of `compare.json`."""
        rows = [{**row.facts, **{name: value.to_dict() for name, value in row.metrics.items()}} for row in self.rows]
        return {"rows": rows, "evaluations": {run: result.to_dict() for run, result in self.evaluations.items()}}

    def to_markdown(self) -> str:
        """The table in Markdown, without columns that no row has, and a warning if the runs cannot be compared."""
        rows = [row.format() for row in self.rows]
        titles = [title for title in rows[0] if {row[title] for row in rows} != {"-"}]
        warning = f"\nWarning: {self.warning}.\n" if self.warning else ""
        return markdown_table(titles, ([row[title] for title in titles] for row in rows)) + warning

    def print(self, console: Console) -> None:
        """Print the table: one column per row of the comparison, because a terminal is narrow."""
        settings = next(iter(self.evaluations.values())).settings
        count, clips = len(self.evaluations), settings.n  # fewer than n= if the split is small
        title = f"{count} run{'s' * (count > 1)}, {clips} clip{'s' * (clips > 1)} of {settings.split}"
        rows = [row.format() for row in self.rows]
        columns = [(row["run"], [*row.values()][1:]) for row in rows]
        print_table(console, title, [*rows[0]][1:], columns)


def compare(settings: CompareSettings, on_status: Callable[[str], None]) -> Comparison:
    """Evaluate several runs on the same clips.

    Args:
        settings: The runs, and how they are evaluated.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: As of `evaluate`; or no runs are named.
    """
    if settings.runs is None:
        raise InputError("runs=: give run folders to measure, runs=[RUN,RUN], or ratings=FILES of a listening test")
    folders = [Path(folder) for folder in dict.fromkeys(settings.runs)]
    if settings.shards == "auto":
        settings = settings.model_copy(update={"shards": training_shards(folders[0])})
    rows, evaluations, codecs = [], {}, {}
    for folder in folders:
        run = load_run(folder, settings.device, settings.codec_weights, settings.embedder_weights)
        evaluation = evaluate(settings, run, lambda line, folder=folder: on_status(f"{folder}: {line}"))  # type: ignore[misc]
        result = evaluations[str(folder)] = evaluation.result
        frames = [clip.codes.shape[1] for clip in evaluation.clips]
        facts = {
            "run": str(folder),
            "pattern": run.model.config.pattern,
            "codec": run.codec.name,
            "codebooks": run.model.config.codebooks,
            **training_stats(folder, run, statistics.mean(frames)),
            "generation": generation_rate(run, max(frames), settings),
            "bits": result.loss.model.bits_second,
        }
        codecs[str(folder)] = f"{run.codec.name}, {run.model.config.codebooks} codebooks"
        rows += [
            ComparisonRow({**facts, "temperature": float(temperature)}, metrics)
            for temperature, metrics in result.temperatures.items()
        ]
    return Comparison(rows, evaluations, build_table(evaluations, codecs, settings.shards, settings.metrics))


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


def generation_rate(run: LoadedRun, frames: int, settings: CompareSettings) -> float:
    """Codes generated per second with `benchmark_batch` clips at once: the better of two measurements."""
    clips = settings.benchmark_batch
    sampling = settings.sampling.model_copy(update={"temperature": 1.0})
    prompts = torch.zeros(clips, run.embedder.frames, run.model.config.prompt_dim)
    values = run.model.condition_values(prompts, {})
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        generate(run.engine, values, frames, sampling, range(clips))
        best = min(best, time.perf_counter() - started)
    return clips * frames * run.model.config.codebooks / best


def _format_fact(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "-" if value is None else str(value)
