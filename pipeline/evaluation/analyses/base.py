"""The interface of analyses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.audio_set import AudioSet, References
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.evaluation.results import AnalysisResult, MetricValue
from pipeline.evaluation.settings import EvaluateSettings
from pipeline.generation.loaded_run import LoadedRun


@dataclass(frozen=True)
class AnalysisInputs:
    """What analyses read.

    Attributes:
        settings: The settings of the evaluation.
        run: The model.
        split: The split that is measured.
        training: The clips that the model was trained on: the split `baseline`.
        references: The reference clips, and what their sounds are compared with.
        generations: The sounds generated from the prompts of these clips, by temperature.
        show_status: Gets a line about each part of the work.
    """

    settings: EvaluateSettings
    run: LoadedRun
    split: ShardedDataset
    training: ShardedDataset
    references: References
    generations: Mapping[float, AudioSet]
    show_status: Callable[[str], None]

    @property
    def clips(self) -> Sequence[ReferenceClip]:
        """The N reference clips."""
        return self.references.clips

    @property
    def reconstructions(self) -> AudioSet:
        """The codec's reconstructions of the reference clips."""
        return self.references.reconstructions

    def summarize(self, values: np.ndarray | float) -> MetricValue:
        """The mean of one value per clip [N] with its 95 % interval; or the one value."""
        return summarize(values, self.settings.resamples, self.settings.seed)


class Analysis(ABC):
    """A question about a model that takes more than one value for each set of sounds.

    Attributes:
        title: Its title in tables and in the report.
        order: Analyses are shown in ascending order.
    """

    title: ClassVar[str]
    order: ClassVar[int] = 100

    def check(self, settings: EvaluateSettings) -> None:
        """Refuse settings before any work.

        Raises:
            InputError: A setting of this analysis has a wrong value, or files that it names are missing.
        """
        return

    @abstractmethod
    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """The result; None: it is not defined for this model or these clips."""
