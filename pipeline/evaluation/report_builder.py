"""The report as one HTML file that contains its sounds, so that any browser plays it offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.metrics_file import read_metrics
from pipeline.common.settings import format_command
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.html_templates import render_report
from pipeline.evaluation.reference_clips import check_dataset, max_frames, sample_reference_clips
from pipeline.evaluation.results import read_evaluation
from pipeline.evaluation.run_folder import run_facts, training_shards
from pipeline.evaluation.sections import list_sections
from pipeline.evaluation.sections.base import ReportInputs
from pipeline.evaluation.settings import ReportSettings
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


def build_report(settings: ReportSettings, on_status: Callable[[str], None]) -> Report:
    """Build the report of a run.

    Args:
        settings: The run, and what the report shows.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: The run, the dataset, the prompts or the evaluation cannot be used.
    """
    folder = Path(settings.run)
    if settings.shards == "auto":
        settings = settings.model_copy(update={"shards": training_shards(folder)})
    run = load_run(folder, settings.device, settings.codec_weights, settings.embedder_weights)
    split = ShardedDataset(settings.shards, settings.split)
    check_dataset(split, run)
    clips = sample_reference_clips(split, settings.n, settings.seed, run, max_frames(run))
    command = format_command("evaluate", run=settings.run, shards=settings.shards)
    evaluation, notes = read_evaluation(Path(settings.evaluation)), []
    hint = f"For more results run: {command}"
    if evaluation and evaluation.export.sha256 != run.sha256:
        evaluation = None
        hint = f"The results in {settings.evaluation} are of another export and are left out; run again: {command}"
        notes.append(hint)
    inputs = ReportInputs(settings, run, split, clips, read_metrics(folder), evaluation, hint)
    kinds = list_sections()
    for section in kinds:
        section.check(inputs)
    sections = {}
    for section in kinds:
        on_status(section.title)
        if (content := section.build(inputs)) is not None:
            sections[section.title] = content
    html = render_report(folder.name, run_facts(run, settings), sections, run.codec.sample_rate)
    return Report(html, sum(len(row.sounds) for section in sections.values() for row in section.rows), notes)
