"""A sequence of schedules, one after another."""

from __future__ import annotations

import functools

from pydantic import ValidationInfo, field_validator

from pipeline.common.errors import InputError
from pipeline.common.setting_types import NonNegative, PositiveInt
from pipeline.common.settings import Settings, parse_settings
from pipeline.training.schedules import SCHEDULES, Schedule


class Part(Settings):
    """How long a schedule of a sequence is used, and at which peak.

    Attributes:
        steps: Its number of steps; the last part may omit it.
        scale: Its peak, as a fraction of the peak of the sequence.
    """

    steps: PositiveInt | None
    scale: NonNegative


@SCHEDULES.register("sequence")
class Sequence(Schedule):
    """`parts: [{name: linear, steps: 1000, warmup: 100, floor: 0.1}, {name: constant, scale: 0.1}]`."""

    @field_validator("parts")
    @classmethod
    def _check_parts(cls, parts: list[dict[str, object]] | None, info: ValidationInfo) -> list[dict[str, object]]:
        if not parts:
            raise ValueError("expected a list of one or more parts, [{name: linear, steps: 1000}, {name: constant}]")
        setting = f"{(info.context or {}).get('prefix', '')}parts"
        for i, part in enumerate(parts):
            if parse_part(part, f"{setting}[{i}].")[0].steps is None and i + 1 < len(parts):
                raise InputError(f"{setting}[{i}] has no steps: only the last part may omit them")
        return parts

    def multiplier(self, step: int, steps: int) -> float:
        *parts, (last, last_schedule) = self.schedules
        for part, schedule in parts:
            assert part.steps is not None, "only the last part may omit its steps"
            if step < part.steps:
                return part.scale * schedule.multiplier(step, part.steps)
            step, steps = step - part.steps, steps - part.steps
        return last.scale * last_schedule.multiplier(step, last.steps or steps)

    @functools.cached_property
    def schedules(self) -> list[tuple[Part, Schedule]]:
        """The parts, each with its schedule."""
        return [parse_part(part) for part in self.parts or ()]


def parse_part(values: dict[str, object], prefix: str = "") -> tuple[Part, Schedule]:
    """A part of a sequence and its schedule; prefix: the dotted name of the part, with a dot at its end."""
    limits = {"steps": values.get("steps"), "scale": values.get("scale", 1.0)}
    own: dict[str, object] = {"warmup": 0, "floor": 0.0, "parts": None}
    own |= {name: value for name, value in values.items() if name not in limits}
    schedule = SCHEDULES.get(str(own.get("name")), f"{prefix}name")
    return parse_settings(Part, limits, prefix), parse_settings(schedule, own, prefix)
