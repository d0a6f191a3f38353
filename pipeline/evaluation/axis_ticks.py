"""Ticks of an axis."""

from __future__ import annotations

import math


def ticks(low: float, high: float, parts: int = 5) -> list[float]:
    """Round numbers from low to high, in steps of at least 1 / parts of the range: about four to eight by default."""
    min_step = (high - low) / parts
    scale = 10.0 ** math.floor(math.log10(min_step))
    step = scale * min((s for s in (1, 2, 5, 10) if s * scale >= min_step), default=10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
