"""Analyses of an evaluation: one file for each. See `ANALYSES`."""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.evaluation.analyses.base import Analysis as Analysis
from pipeline.evaluation.analyses.base import AnalysisInputs as AnalysisInputs
from pipeline.evaluation.results import AnalysisResult as AnalysisResult
from pipeline.evaluation.settings import EvaluateSettings

ANALYSES: Registry[type[Analysis]] = Registry("analysis", __name__)


def select_analyses(settings: EvaluateSettings) -> dict[str, Analysis]:
    """The analyses that the settings name, in the order in which they are shown.

    Raises:
        InputError: There is no analysis of a name, or one refuses the settings.
    """
    kinds = {name: ANALYSES.get(name, "analyses") for name in settings.analyses}
    analyses = {name: kind() for name, kind in sorted(kinds.items(), key=lambda item: item[1].order)}
    for analysis in analyses.values():
        analysis.check(settings)
    return analyses
