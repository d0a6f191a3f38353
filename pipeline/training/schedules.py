"""Learning-rate schedules: pure functions of the settings and the step, so there is no state to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.common.errors import InputError

SCHEDULES = ("constant", "linear", "cosine", "sequence")
_KEYS = {"name", "warmup", "floor", "steps", "scale", "parts"}


def lr_multiplier(step: int, steps: int, schedule: Mapping[str, Any]) -> float:
    """The learning rate as a fraction of its peak.

    Args:
        step: 0-based.
        steps: total number of steps.
        schedule: {name: constant|linear|cosine, warmup: steps, floor: fraction of the peak at the end}, or
            {name: sequence, parts: [{steps: n, name: ..., scale: fraction of the peak}, ...]}, where the last part may
            omit its steps. It has passed `check_schedule`.
    """
    name = schedule["name"]
    if name == "sequence":
        return _sequence_multiplier(step, steps, schedule["parts"])
    warmup, floor = schedule.get("warmup", 0), schedule.get("floor", 0.0)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if name == "constant":
        return 1.0
    if name == "linear":
        return floor + (1 - floor) * (1 - progress)
    assert name == "cosine"
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _sequence_multiplier(step: int, steps: int, parts: Iterable[Mapping[str, Any]]) -> float:
    start = 0
    for part in (parts := list(parts)):
        length = part.get("steps", steps - start)
        if step < start + length or part is parts[-1]:
            return part.get("scale", 1.0) * lr_multiplier(step - start, length, part)
        start += length
    raise AssertionError("a sequence has parts")


def check_schedule(schedule: Mapping[str, Any], setting: str = "optim.schedule") -> None:
    """Raises InputError, naming the setting, unless a schedule and all its parts are valid."""
    if not isinstance(schedule, Mapping) or schedule.get("name") not in SCHEDULES:
        name = schedule.get("name") if isinstance(schedule, Mapping) else schedule
        raise InputError(f"{setting}.name={name}: expected one of {', '.join(SCHEDULES)}")
    if unknown := set(schedule) - _KEYS:
        raise InputError(f"{setting} has no {', '.join(sorted(unknown))}: expected {', '.join(sorted(_KEYS))}")
    for name in _KEYS - {"name", "parts"}:
        value = schedule.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InputError(f"{setting}.{name}={value}: expected a number of 0 or more")
    if schedule["name"] != "sequence":
        return
    parts = schedule.get("parts")
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise InputError(f"{setting}.parts={parts}: expected a list of one or more parts")
    for i, part in enumerate(parts):
        check_schedule(part, f"{setting}.parts[{i}]")
        if "steps" not in part and i + 1 < len(parts):
            raise InputError(f"{setting}.parts[{i}] has no steps: only the last part may omit them")
