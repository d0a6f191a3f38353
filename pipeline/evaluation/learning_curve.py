"""The learning curve of a dataset: what a model learns from parts of it, and what more of it would bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

from pipeline.common.console import format_duration
from pipeline.common.metrics_file import read_metrics
from pipeline.data.manifest import Manifest
from pipeline.evaluation.comparison import training_stats
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.html_templates import SectionContent, render, render_report, render_table
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.power_law import fit_power_law
from pipeline.evaluation.results import EvaluationResult, MetricValues, read_evaluation
from pipeline.evaluation.settings import LearningCurveSettings
from pipeline.evaluation.svg_plots import Curve, plot
from pipeline.evaluation.tables import print_table
from pipeline.generation.loaded_run import load_run

NOT_MEASURED = {"out", "n", "shares", "train", "plugins", "batch", "device"}  # settings that do not change results
GROWTH = 2  # the curves are extended to this multiple of the data


@dataclass(frozen=True)
class CurvePoint:
    """A model that was trained on a part of the dataset.

    Attributes:
        share: The part.
        hours: Hours of sound in it.
        epochs: How often the training has seen each clip.
        petaflop: The compute of the training; None if unknown.
        loss: The lowest validation loss of the training, in nats per code.
        metrics: The metrics of its generations.
        ceiling: The metrics of the codec's reconstructions.
    """

    share: float
    hours: float
    epochs: float
    petaflop: float | None
    loss: float
    metrics: MetricValues
    ceiling: MetricValues


@dataclass(frozen=True)
class Forecast:
    """What a quantity would be with more data, with its 95 % prediction interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """A loss or a metric by hours of sound, as it is shown.

    Attributes:
        name: Its name in the JSON.
        heading: Its title, with the unit.
        digits: Digits after the point.
        values: One value a point.
        intervals: The interval of each value; empty if there are none.
        ceiling: The best value that the codec allows; None: lower is better, and 0 is the best.
        forecast: What it would be with `GROWTH` times the data; None if that cannot be said.
    """

    name: str
    heading: str
    digits: int
    values: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    ceiling: float | None
    forecast: Forecast | None

    def format(self, value: float) -> str:
        """A value as text."""
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # not -0

    def sentence(self) -> str:
        """What more data would bring."""
        now = f"{self.heading.strip(' ↑↓')}: {self.format(self.values[-1])} now"
        if self.forecast is None:
            return f"{now}, at its ceiling"
        f = self.forecast
        limit = "" if self.ceiling is None else f"; the codec's ceiling is {self.format(self.ceiling)}"
        return f"{now}, {self.format(f.value)} [{self.format(f.low)}..{self.format(f.high)}] expected{limit}"


def measure_point(settings: LearningCurveSettings, share: float, manifest: Manifest, folder: Path) -> CurvePoint:
    """Evaluate the model of a part, unless `RUN/evaluation` has the results of this export and these settings.

    Args:
        settings: How it is evaluated.
        share: The part.
        manifest: That of the part.
        folder: The run folder.
    """
    run = load_run(folder, settings.device, settings.codec_weights, settings.embedder_weights)
    result, own = read_evaluation(folder / "evaluation" / "evaluate.json"), settings.model_dump(exclude=NOT_MEASURED)
    if result is None or result.export.sha256 != run.sha256 or not _has_settings(result, own, settings.n):
        evaluation = evaluate(settings, run, lambda line: None)
        evaluation.write(folder / "evaluation")
        result = evaluation.result
    log, clips = read_metrics(folder), manifest.num_samples(settings.baseline)
    seen = max(row.get("train/clips", 0) for row in log)
    petaflop = training_stats(folder, run, manifest.num_frames(settings.baseline) / clips)["petaflop"]
    loss = min(row["val/loss"] for row in log if "val/loss" in row)
    metrics = next(iter(result.temperatures.values()))
    hours = manifest.hours(settings.baseline)
    return CurvePoint(share, hours, seen / clips, petaflop, loss, metrics, result.ceiling)


def _has_settings(result: EvaluationResult, own: Mapping[str, object], n: int) -> bool:
    """Whether an evaluation has these settings, and n clips or all that there are."""
    known = result.settings.model_dump()
    return {**known, **own} == known and known["n"] == min(n, result.loss.clips)


class LearningCurve:
    """Points in the order of their shares, and the curves through them, extended to `GROWTH` times the data.

    The loss, and what a metric lacks to its ceiling, are taken for power laws of the hours of sound.
    """

    def __init__(self, points: Sequence[CurvePoint]) -> None:
        """Fit the curves to three or more points."""
        self.points = sorted(points, key=lambda point: point.hours)
        self.hours = [point.hours for point in self.points]
        self.target_hours = GROWTH * self.hours[-1]
        losses = [point.loss for point in self.points]
        loss = Quantity("loss", "validation loss ↓", 3, losses, (), None, self._forecast(losses, None))
        self.quantities = [loss, *self._metrics()]

    def _metrics(self) -> list[Quantity]:
        """The metrics with a mean over clips of which higher values are better."""
        quantities = []
        ceiling = self.points[-1].ceiling
        for name, metric in list_metrics().items():
            measured = [point.metrics[name] for point in self.points if name in point.metrics]
            if not metric.higher_is_better or len(measured) < len(self.points) or name not in ceiling:
                continue
            scale, best = metric.scale, metric.scale * ceiling[name].mean
            values = [scale * value.mean for value in measured]
            edges = [(scale * value.interval[0], scale * value.interval[1]) for value in measured if value.interval]
            if edges:
                digits, forecast = 0 if metric.is_percent else 2, self._forecast(values, best)
                quantities.append(Quantity(name, metric.heading, digits, values, edges, best, forecast))
        return quantities

    def _forecast(self, values: Sequence[float], ceiling: float | None) -> Forecast | None:
        law = fit_power_law(self.hours, values if ceiling is None else [ceiling - value for value in values])
        if law is None:
            return None
        value, low, high = law.predict(self.target_hours)
        if ceiling is None:
            return Forecast(value, low, high)
        return Forecast(*(max(0.0, ceiling - lack) for lack in (value, high, low)))  # no metric is below 0

    def to_dict(self) -> dict[str, Any]:
        """The content of `learning_curve.json`."""
        points = [
            {
                "share": point.share, "hours": point.hours, "epochs": point.epochs, "petaflop": point.petaflop,
                "loss": point.loss, "metrics": {name: value.to_dict() for name, value in point.metrics.items()},
            }
            for point in self.points
        ]  # fmt: skip
        forecasts = {q.name: None if q.forecast is None else vars(q.forecast) for q in self.quantities}
        ceilings = {q.name: q.ceiling for q in self.quantities if q.ceiling is not None}
        return {"points": points, "ceiling": ceilings, "forecast": {"hours": self.target_hours, **forecasts}}

    @property
    def conclusion(self) -> list[str]:
        """What twice the data would bring, in a line for each quantity."""
        duration = format_duration(3600 * self.target_hours)
        title = f"with {GROWTH} times the data, {duration} ([..]: 95 % prediction interval):"
        return [title, *(f"  {quantity.sentence()}" for quantity in self.quantities)]

    def print(self, console: Console) -> None:
        """Print the points and the conclusion."""
        labels = [f"{point.share:.3g} of the data, {format_duration(3600 * point.hours)}" for point in self.points]
        columns = [("epochs", [f"{point.epochs:.3g}" for point in self.points])]
        columns += [(q.heading, [q.format(value) for value in q.values]) for q in self.quantities]
        print_table(console, "models of one size and compute, trained on parts of the data", labels, columns)
        for line in self.conclusion:
            console.print(line, highlight=False)

    def to_html(self, title: str) -> str:
        """The page with a plot for each quantity."""
        plots = [self._plot(quantity) for quantity in self.quantities]
        content = SectionContent(
            html=render("learning_curve.html", plots=plots, lines=self.conclusion, table=self._table())
        )
        compute = self.points[-1].petaflop
        facts = {
            "hours": f"{self.hours[-1]:.3g}",
            "compute of each model": "-" if compute is None else f"{compute:.3g} PFLOP",
        }
        return render_report(title, facts, {"Is it enough?": content}, 0)

    def _table(self) -> Markup:
        rows = {
            f"{point.share:.3g}": [f"{point.hours:.3g}", f"{point.epochs:.3g}", f"{point.loss:.3f}"]
            for point in self.points
        }
        return render_table("Parts of the data", ["hours", "epochs", "lowest validation loss"], rows)

    def _plot(self, quantity: Quantity) -> Markup:
        curves = [Curve("measured", list(zip(self.hours, quantity.values, strict=True)), quantity.intervals)]
        if quantity.forecast is not None:
            last, f = (self.hours[-1], quantity.values[-1]), quantity.forecast
            points = [last, (self.target_hours, f.value)]
            curves.append(Curve("extended", points, [(last[1], last[1]), (f.low, f.high)]))
        levels = [] if quantity.ceiling is None else [("ceiling", quantity.ceiling)]
        return plot(quantity.heading, "hours of sound", curves, levels)
