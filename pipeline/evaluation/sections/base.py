"""The interface of the report's sections.

Letters: B clips, S samples, P prompt width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.html_templates import SectionContent
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.evaluation.results import AnalysisResult, EvaluationResult
from pipeline.evaluation.settings import ReportSettings
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes


@dataclass(frozen=True)
class ReportInputs:
    """What sections are built from.

    Attributes:
        settings: The settings of the report; `shards` is the dataset.
        run: The model.
        split: The dataset that supplies the clips.
        clips: The clips.
        log: The rows of the run's metrics.jsonl.
        evaluation: The results of pipeline.evaluate for this export, or None.
        evaluate_hint: How to get these results.
    """

    settings: ReportSettings
    run: LoadedRun
    split: ShardedDataset
    clips: Sequence[ReferenceClip]
    log: Sequence[Mapping[str, Any]]
    evaluation: EvaluationResult | None
    evaluate_hint: str

    def analysis(self, name: str) -> AnalysisResult | None:
        """The result of an analysis, if it was measured."""
        return self.evaluation.analyses.get(name) if self.evaluation else None

    def generate(self, prompts: Tensor | None, frames: int, seeds: Sequence[int]) -> list[np.ndarray]:
        """The sounds, [S] or [S, 2], generated from prompts [B, N, P], one for each seed; None: without a prompt."""
        values = None if prompts is None else self.run.model.condition_values(prompts, {})
        codes, lengths = generate(self.run.engine, values, frames, self.settings.sampling, seeds)
        return decode_codes(self.run.codec, [row[:, :n] for row, n in zip(codes, lengths.tolist(), strict=True)])


class Section(ABC):
    """A section of the report.

    Attributes:
        title: Its title.
        order: Sections are shown in ascending order.
    """

    title: ClassVar[str]
    order: ClassVar[int] = 100

    def check(self, inputs: ReportInputs) -> None:  # noqa: B027 - most sections need no check
        """Raise InputError if `build` cannot work with these settings; called before any section is built."""

    @abstractmethod
    def build(self, inputs: ReportInputs) -> SectionContent | None:
        """The content; None: the report does not have this section."""
