"""The report of a run, from its settings to the page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import redact
from pipeline.common.metrics_file import read_metrics
from pipeline.common.settings import format_override
from pipeline.evaluation import run_folder
from pipeline.evaluation.report_html import render_report
from pipeline.evaluation.report_sections import build_sections
from pipeline.generation.loaded_run import load_run


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        html: The page.
        sounds: The number of sounds in it.
        notes: Lines for the terminal.
    """

    html: str
    sounds: int
    notes: list[str]


def build_report(settings: Mapping[str, Any], on_status: Callable[[str], None]) -> Report:
    """Build the report of a run.

    Args:
        settings: Those of conf/report.yaml.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: The run, the dataset, the prompts or the evaluation cannot be used.
    """
    folder = Path(settings["run"])
    if settings["shards"] == "auto":
        settings = {**settings, "shards": run_folder.training_shards(folder)}
    run = load_run(folder, settings["device"], settings["codec_weights"], settings["embedder_weights"])
    sections = build_sections(settings, run, on_status)
    overrides = (format_override("run", folder), format_override("shards", redact(settings["shards"])))
    command = shlex.join(["python", "-m", "pipeline.evaluate", *overrides])
    evaluation, notes = run_folder.read_evaluation(Path(settings["evaluation"])), []
    hint = f"For more results run: {command}"
    if evaluation and evaluation["export"]["sha256"] != run.sha256:
        evaluation = None
        hint = f"The results in {settings['evaluation']} are of another export and are left out; run again: {command}"
        notes.append(hint)
    facts = run_folder.run_facts(run, settings)
    html = render_report(folder.name, facts, sections, run.codec.sample_rate, read_metrics(folder), evaluation, hint)
    return Report(html, sum(len(row.sounds) for section in sections for row in section.rows), notes)
