"""Curves of long sounds: each measure by stretch, for each window and temperature."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from pipeline.common.errors import InputError, one_line
from pipeline.evaluation.analyses.length import END_OF_CLIP, NAME, PERCENTS
from pipeline.evaluation.html_templates import render
from pipeline.evaluation.results import MetricValues, Number, Text
from pipeline.evaluation.sections import SECTIONS, ReportInputs, Section, SectionContent
from pipeline.evaluation.svg_plots import Curve, plot

UNITS = {"level": "dB", "change": "dB"} | dict.fromkeys(PERCENTS, "%")


class LengthDetails(BaseModel):
    """The details of the analysis: the middle of each stretch in seconds, and its values by name of the curve."""

    middles: Annotated[list[Number], Field(min_length=1, max_length=100_000)]
    curves: dict[Text, list[MetricValues]]


@SECTIONS.register(NAME)
class LengthCurves(Section):
    """A plot of each measure."""

    title = "Sound at length"
    order = 60

    def build(self, inputs: ReportInputs) -> SectionContent | None:
        """None: the evaluation has no long sounds."""
        result = inputs.analysis(NAME)
        if result is None:
            return None
        try:
            details = LengthDetails.model_validate(result.details)
        except ValidationError as error:
            raise InputError(f"evaluation={inputs.settings.evaluation}: {NAME}: {one_line(error):.200}") from None
        names = dict.fromkeys(name for stretches in details.curves.values() for each in stretches for name in each)
        ends = result.rows.get(END_OF_CLIP, {})
        plots = []
        for name in names:
            scale = 100 if name in PERCENTS else 1
            curves = [_curve(label, name, details.middles, each, scale) for label, each in details.curves.items()]
            levels = [(END_OF_CLIP, scale * ends[name].mean)] if name in ends else []
            title = f"{name} ({UNITS[name]})" if name in UNITS else name
            plots.append(plot(title, "seconds", [curve for curve in curves if curve.points], levels))
        return SectionContent(result.text, render("plots.html", plots=plots))


def _curve(label: str, name: str, middles: list[float], stretches: list[MetricValues], scale: int) -> Curve:
    values = [(x, each[name]) for x, each in zip(middles, stretches, strict=False) if name in each]
    intervals = [(scale * v.interval[0], scale * v.interval[1]) for _, v in values if v.interval]
    return Curve(label, [(x, scale * value.mean) for x, value in values], intervals)
