"""Plots as inline SVG, in the colours of the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.evaluation.axis_ticks import ticks
from pipeline.evaluation.html_templates import render

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 240, 46, 34, 12, 12


@dataclass(frozen=True)
class Curve:
    """Points (x, y), and their intervals (low, high) or none."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()


def plot(title: str, x_label: str, curves: Sequence[Curve], levels: Sequence[tuple[str, float]] = ()) -> Markup:
    """Render a plot.

    Args:
        title: The title.
        x_label: The label of the x axis.
        curves: The curves.
        levels: Horizontal lines: their names and y values.

    Returns:
        The SVG in a figure.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [y for _, y in levels]
    ys += [edge for curve in curves for interval in curve.intervals for edge in interval]
    (first, last), (low, high) = _range(xs, 0.02), _range(ys, 0.06)
    low = max(low, 0.0) if min(ys) >= 0 else low
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def px(x: float) -> str:
        return f"{LEFT + (x - first) / (last - first) * (right - LEFT):.1f}"

    def py(y: float, shift: int = 0) -> str:
        return f"{bottom - (y - low) / (high - low) * (bottom - TOP) + shift:.1f}"

    return render(
        "plot.html", title=title, across=x_label, curves=curves, levels=levels, width=WIDTH, height=HEIGHT, left=LEFT,
        right=right, bottom=bottom, x=px, y=py, x_ticks=ticks(first, last), y_ticks=ticks(low, high), short=_short,
        description=_describe(title, x_label, curves), zip=zip,
    )  # fmt: skip


def _describe(title: str, x_label: str, curves: Sequence[Curve]) -> str:
    """A plot in words: the points of its curves, or the ends of those with many."""
    lines = []
    for curve in curves:
        points = curve.points if len(curve.points) <= 12 else (curve.points[0], curve.points[-1])
        lines.append(f"{curve.name} " + ", ".join(f"{_short(x)}: {y:.4g}" for x, y in points))
    return f"{title} by {x_label}: {'; '.join(line.strip() for line in lines)}"


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The lowest and the highest value, with a margin, a fraction of their difference, on both sides."""
    low, high = min(values), max(values)
    padding = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - padding, high + padding


def _short(x: float) -> str:
    return f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:g}"
