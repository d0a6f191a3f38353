"""Curves as inline SVG, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 240, 46, 34, 12, 12


@dataclass(frozen=True)
class Curve:
    """Points (x, y), and where known their intervals (low, high)."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()


def plot(title: str, across: str, curves: Sequence[Curve], levels: Sequence[tuple[str, float]] = ()) -> str:
    """An SVG of curves; levels: names of horizontal lines and where they lie."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [y for _, y in levels]
    ys += [edge for curve in curves for interval in curve.intervals for edge in interval]
    (left, right), (low, high) = _range(xs, 0.02), _range(ys, 0.06)
    low = max(low, 0.0) if min(ys) >= 0 else low

    def px(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks(low, high):
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(left, right):
        parts.append(f'<text x="{px(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>')
    for name, level in levels:
        y = py(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(name)}</text>')
    for i, curve in enumerate(curves):
        for (x, _), (bottom, top) in zip(curve.points, curve.intervals, strict=False):
            parts.append(
                f'<line class="c{i} bar" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(bottom):.1f}" y2="{py(top):.1f}"/>'
            )
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in curve.points)
        parts.append(f'<polyline class="c{i}" points="{path}"/>')
        if len(curve.points) <= 12:
            parts += [f'<circle class="c{i}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>' for x, y in curve.points]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>'
    )
    names = " ".join(f'<span class="c{i}">{escape(curve.name)}</span>' for i, curve in enumerate(curves))
    return f"<figure class=plot><figcaption>{escape(title)} {names}</figcaption>{''.join(parts)}</svg></figure>"


def ticks(low: float, high: float) -> list[float]:
    """Some four to eight round numbers from low to high."""
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = scale * min((s for s in (1, 2, 5, 10) if s * scale >= rough), default=10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _short(x: float) -> str:
    return f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:g}"
