"""Sections of the report: one file for each. See `SECTIONS`."""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.evaluation.html_templates import AudioRow as AudioRow
from pipeline.evaluation.html_templates import LabeledAudio as LabeledAudio
from pipeline.evaluation.html_templates import SectionContent as SectionContent
from pipeline.evaluation.sections.base import ReportInputs as ReportInputs
from pipeline.evaluation.sections.base import Section as Section

SECTIONS: Registry[type[Section]] = Registry("report section", __name__)


def list_sections() -> list[Section]:
    """All sections, in the order in which the report has them."""
    return [kind() for _, kind in sorted(SECTIONS.items(), key=lambda item: item[1].order)]
