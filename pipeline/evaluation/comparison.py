"""Runs side by side: what they have learned, what it took, and how fast they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common.metrics_file import read_metrics
from pipeline.common.settings import require_min
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.tables import format_metric
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.generation.sampling import SamplingParams
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
    """rows: a dict a run and temperature, by the names of COLUMNS; told: evaluate.json of each run."""

    rows: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]


def compare(settings: Mapping[str, Any], say: Callable[[str], None]) -> Comparison:
    """Evaluate every run on the same clips. Raises InputError as `evaluate` does."""
    require_min(1, settings, "benchmark_batch")
    rows, told = [], {}
    for run in map(Path, dict.fromkeys(settings["runs"])):
        instrument = load_run(run, settings["device"], settings["codec_weights"], settings["embedder_weights"])
        found = evaluate(settings, instrument, lambda line, run=run: say(f"{run}: {line}"))  # type: ignore[misc]
        told[str(run)] = found.results
        frames = statistics.mean(clip.codes.shape[1] for clip in found.clips)
        longest = max(clip.codes.shape[1] for clip in found.clips)
        made = generation_rate(instrument, longest, settings["benchmark_batch"], found.results["settings"]["sampling"])
        learned = training_stats(run, instrument, frames)
        for temperature, row in found.results["temperatures"].items():
            rows.append(
                {
                    "run": str(run),
                    "pattern": instrument.model.config.pattern,
                    "codec": instrument.codec.name,
                    "codebooks": instrument.model.config.codebooks,
                    "bits": found.results["loss"]["model"]["bits_second"],
                    "temperature": float(temperature),
                    "fidelity": row["fidelity"],
                    "pitch": row.get("pitch"),
                    "generation": made,
                    **learned,
                }
            )
    return Comparison(rows, told)


def comparability_warning(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What keeps runs from being compared by their figures; None where nothing does."""
    differ = [name for name in ("codec", "codebooks") if len({row[name] for row in rows}) > 1]
    if not differ:
        return None
    return (
        f"the runs differ in {' and '.join(differ)}: bits and codes a second count the codes of all codebooks, and "
        "fidelity and pitch have other ceilings; compare only runs of the same"
    )


def training_stats(run: Path, instrument: LoadedRun, frames: float) -> dict[str, float | None]:
    """What the log of a run tells of its training: steps, arithmetic, and how fast it was; None where it does not."""
    logged = [row for row in read_metrics(run) if "train/clips" in row and "speed/codes_per_second" in row]
    if not logged:
        return {"steps": None, "petaflop": None, "training": None}
    each = logged[len(logged) // 4 :]  # the first rows warm up
    return {
        "steps": logged[-1]["step"],
        "petaflop": logged[-1]["train/clips"] * model_stats.training_flops(instrument.model.config, frames) / 1e15,
        "training": statistics.median(row["speed/codes_per_second"] for row in each),
    }


def generation_rate(instrument: LoadedRun, frames: int, clips: int, sampling: Mapping[str, Any]) -> float:
    """Codes a second, `clips` at once: the better of two times."""
    best = float("inf")
    chosen = SamplingParams(1.0, sampling["top_k"], sampling["top_p"], sampling["min_p"], sampling["guidance"])
    prompts = torch.zeros(clips, instrument.model.config.prompt_dim)
    for _ in range(2):
        started = time.perf_counter()
        generate(instrument.engine, prompts, frames, chosen, range(clips))
        best = min(best, time.perf_counter() - started)
    return clips * frames * instrument.model.config.codebooks / best


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, as a README has it, and what to mind."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(format_row(row)) + " |" for row in rows]
    note = comparability_warning(rows)
    return "\n".join([*lines, *(["", f"Mind: {note}."] if note else [])]) + "\n"


def format_row(row: Mapping[str, Any]) -> list[str]:
    """A row as its cells read."""
    found = []
    for name in COLUMNS:
        value = row[name]
        if value is None:
            found.append("-")
        elif isinstance(value, Mapping):
            found.append(format_metric(value, name == "pitch"))
        elif isinstance(value, float):
            found.append(f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
        else:
            found.append(str(value))
    return found
