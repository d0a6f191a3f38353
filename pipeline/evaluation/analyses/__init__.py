"""Analyses of an evaluation: one file for each. See `ANALYSES`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.registry import Registry
from pipeline.evaluation.analyses.base import Analysis as Analysis
from pipeline.evaluation.analyses.base import AnalysisInputs as AnalysisInputs
from pipeline.evaluation.results import AnalysisResult as AnalysisResult

ANALYSES: Registry[type[Analysis]] = Registry("analysis", __name__)


def select_analyses(names: Sequence[str]) -> dict[str, Analysis]:
    """The analyses of these names, in the order in which they are shown.

    Raises:
        InputError: There is no analysis of a name.
    """
    kinds = {name: ANALYSES.get(name, "analyses") for name in names}
    return {name: kind() for name, kind in sorted(kinds.items(), key=lambda item: item[1].order)}
