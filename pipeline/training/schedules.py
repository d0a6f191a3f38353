"""Learning-rate schedules: pure functions of the settings and the step, with nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.common.errors import InputError

SCHEDULES = ("constant", "linear", "cosine", "sequence")
_KNOWN = {"name", "warmup", "floor", "steps", "scale", "parts"}


def lr_multiplier(step: int, steps: int, schedule: Mapping[str, Any]) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`.

    schedule: {name: constant|linear|cosine, warmup: steps, floor: share of the peak at the end}, or
    {name: sequence, parts: [{steps: n, name: ..., scale: share of the peak}, ...]}, whose last part may leave its
    steps out; one that `check_schedule` accepts.
    """
    name = schedule["name"]
    if name == "sequence":
        return _sequence(step, steps, schedule["parts"])
    warmup, floor = schedule.get("warmup", 0), schedule.get("floor", 0.0)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if name == "constant":
        return 1.0
    if name == "linear":
        return floor + (1 - floor) * (1 - done)
    assert name == "cosine"
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def _sequence(step: int, steps: int, parts: Iterable[Mapping[str, Any]]) -> float:
    start = 0
    for part in (parts := list(parts)):
        length = part.get("steps", steps - start)
        if step < start + length or part is parts[-1]:
            return part.get("scale", 1.0) * lr_multiplier(step - start, length, part)
        start += length
    raise AssertionError("a sequence has parts")


def check_schedule(schedule: Mapping[str, Any], where: str = "optim.schedule") -> None:
    """Raises InputError for what is no schedule, in whatever part of it; `where` names it."""
    if not isinstance(schedule, Mapping) or schedule.get("name") not in SCHEDULES:
        name = schedule.get("name") if isinstance(schedule, Mapping) else schedule
        raise InputError(f"{where}.name={name}: expected one of {', '.join(SCHEDULES)}")
    if unknown := set(schedule) - _KNOWN:
        raise InputError(f"{where} has no {', '.join(sorted(unknown))}: it knows {', '.join(sorted(_KNOWN))}")
    for name in _KNOWN - {"name", "parts"}:
        value = schedule.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InputError(f"{where}.{name}={value}: expected a number of 0 or more")
    if schedule["name"] != "sequence":
        return
    parts = schedule.get("parts")
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise InputError(f"{where}.parts={parts}: a sequence needs a list of at least one part")
    for i, part in enumerate(parts):
        check_schedule(part, f"{where}.parts[{i}]")
        if "steps" not in part and i + 1 < len(parts):
            raise InputError(f"{where}.parts[{i}] has no steps: only the last part may leave them out")
