"""Training curves, and the results of pipeline.evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.evaluation.html_templates import render, render_table
from pipeline.evaluation.metrics import Metric, list_metrics
from pipeline.evaluation.results import ORIGINALS, EvaluationResult
from pipeline.evaluation.sections import SECTIONS, ReportInputs, Section, SectionContent
from pipeline.evaluation.svg_plots import Curve, plot
from pipeline.evaluation.tables import loss_columns


@SECTIONS.register("results")
class Results(Section):
    """Plots of losses by step and of metrics by temperature, and a table of losses."""

    title = "Results"
    order = 10

    def build(self, inputs: ReportInputs) -> SectionContent:
        """Only the training curves if there is no evaluation of this export."""
        return SectionContent(html=render_results(inputs.log, inputs.evaluation, inputs.evaluate_hint))


def render_results(log: Sequence[Mapping[str, Any]], evaluation: EvaluationResult | None, hint: str) -> Markup:
    """The HTML of the section.

    Args:
        log: The rows of metrics.jsonl.
        evaluation: The results, or None.
        hint: Shown if there are none.
    """
    plots = _plot_losses(log, evaluation)
    if evaluation is not None:
        metrics = list_metrics().items()
        plots += [_plot_metric(name, metric, evaluation) for name, metric in metrics if name in evaluation.ceiling]
    guidance = None if evaluation is None else _format_guidance(evaluation.settings.sampling.guidance)
    tables = [] if evaluation is None else _tables(evaluation)
    return render("results.html", plots=plots, tables=tables, evaluation=evaluation, hint=hint, guidance=guidance)


def _tables(evaluation: EvaluationResult) -> list[tuple[Markup, str, list[str]]]:
    """The tables of metrics, losses and analyses, each with a text and notes about it."""
    metrics = {name: metric for name, metric in list_metrics().items() if name in evaluation.ceiling}
    headings = [metric.heading for metric in metrics.values()]
    rows = {
        title: [metric.format(values.get(name)) for name, metric in metrics.items()]
        for title, values in evaluation.rows().items()
    }
    caption = f"Sounds generated from the prompts of {evaluation.settings.n} clips"
    tables: list[tuple[Markup, str, list[str]]] = [(render_table(caption, headings, rows), "", [])]
    labels, losses = loss_columns(evaluation.loss)
    tables.append((render_table(f"Loss over {evaluation.loss.clips} clips", labels, dict(losses)), "", []))
    for analysis in evaluation.analyses.values():
        columns = analysis.columns()
        by_row = {title: [cells[i] for cells in columns.values()] for i, title in enumerate(analysis.rows)}
        tables.append((render_table(analysis.title, [*columns], by_row), analysis.text, analysis.notes))
    return tables


def _format_guidance(scale: float | dict[str, float]) -> str:
    """The scale of guidance, or that of each condition."""
    if isinstance(scale, dict):
        return ", ".join(f"{name} {each:g}" for name, each in scale.items())
    return f"{scale:g}"


def _plot_losses(log: Sequence[Mapping[str, Any]], evaluation: EvaluationResult | None) -> list[Markup]:
    points = {
        name: [(row["step"], row[name]) for row in log if row.get(name) is not None]
        for name in ("train/loss", "val/loss")
    }
    curves = [Curve(name, values) for name, values in points.items() if values]
    levels = [("unigram", evaluation.loss.unigram.nats)] if evaluation else []
    return [plot("Loss (nats per code)", "step", curves, levels)] if curves else []


def _plot_metric(name: str, metric: Metric, evaluation: EvaluationResult) -> Markup:
    """A metric by temperature, with its floor and its ceiling."""
    by_temperature = {float(text): values[name] for text, values in evaluation.temperatures.items() if name in values}
    values = sorted(by_temperature.items())
    points = [(temperature, metric.scale * value.mean) for temperature, value in values]
    intervals = [
        (metric.scale * value.interval[0], metric.scale * value.interval[1]) for _, value in values if value.interval
    ]
    rows = {"floor": evaluation.floor, "ceiling": evaluation.ceiling, ORIGINALS: evaluation.originals}
    levels = [(label, metric.scale * row[name].mean) for label, row in rows.items() if name in row]
    return plot(metric.heading, "temperature", [Curve("", points, intervals)], levels)
