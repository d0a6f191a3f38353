"""Settings of the commands evaluate, compare and report."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.common.setting_types import Count, NonNegative, PositiveInt, Seconds, Unit
from pipeline.common.settings import CommandSettings, Settings
from pipeline.evaluation.protocols import ProtocolSettings
from pipeline.generation.settings import KeptSeconds, SamplingSettings, WindowSeconds

Control = Literal["prompt", "label", "both"]  # the conditions that a model gets when its pitch is controlled
Temperatures = Annotated[list[NonNegative], Field(min_length=1)]


class _ModelSettings(CommandSettings):
    """Settings of all three commands: the model, the clips, and how sounds are generated."""

    shards: str
    split: str
    out: str
    n: PositiveInt
    temperatures: Temperatures
    sampling: SamplingSettings
    seed: Count
    device: str
    codec_weights: str | None
    embedder_weights: str | None


class MeasureSettings(_ModelSettings):
    """Settings of an evaluation: those that evaluate and compare have in common."""

    protocol: ProtocolSettings
    baseline: str
    corpus_root: str | None
    pitch: Literal["auto"] | bool
    resamples: PositiveInt
    batch: Literal["auto"] | PositiveInt

    @property
    def batch_size(self) -> int | None:
        """Clips generated at once; None: as many as fit into memory."""
        return None if self.batch == "auto" else self.batch


class LengthWindow(Settings):
    """A window of the analysis `length`, as in `pipeline.generate`.

    Its fields are not in conf/, so they have defaults here.
    """

    window: WindowSeconds = "auto"
    window_stride: WindowSeconds = "auto"
    window_keep: KeptSeconds = "auto"


class EvaluateSettings(MeasureSettings):
    """The settings of `pipeline.evaluate`."""

    command: ClassVar[str] = "evaluate"

    run: str
    analyses: list[str]
    controls: list[Control]
    spaces: list[str | dict[str, str]]
    embedded_clips: PositiveInt
    instrument: str
    pitches_per_prompt: PositiveInt
    by: str
    length: Seconds | None
    stretch: Seconds
    windows: Annotated[list[LengthWindow], Field(min_length=1)]
    wandb: bool


class CompareSettings(MeasureSettings):
    """The settings of `pipeline.compare`."""

    command: ClassVar[str] = "compare"

    runs: Annotated[list[str], Field(min_length=1)] | None
    ratings: Annotated[list[str], Field(min_length=1)] | None
    metrics: Annotated[list[str], Field(min_length=1)]
    benchmark_batch: PositiveInt


class LearningCurveSettings(MeasureSettings):
    """The settings of `pipeline.learning_curve`."""

    command: ClassVar[str] = "learning_curve"

    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3)]
    train: dict[str, str | int | float] | None


class ReportSettings(_ModelSettings):
    """The settings of `pipeline.report`."""

    command: ClassVar[str] = "report"

    run: str
    corpus_root: str | None
    codebooks: list[PositiveInt]
    prompts: str | list[str] | None
    generations_per_prompt: PositiveInt
    num_interpolations: Count
    steps: Annotated[int, Field(ge=2)]
    blend: Literal["linear", "slerp"]
    crossfade_seconds: Annotated[float, Field(ge=0), Unit("seconds")]
    evaluation: str
    prompt_seconds: Seconds
    listening_test: bool
    other_runs: list[str]
    question: str
