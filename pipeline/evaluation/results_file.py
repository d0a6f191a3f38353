"""What is read back from `evaluate.json`: the shape that a page or a model card relies on."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_temperature(text: str) -> str:
    if not 0 <= float(text) < math.inf:
        raise ValueError(f"{text!r:.40} is no temperature")
    return text


Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # what can be drawn
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[str, Field(max_length=40), AfterValidator(_is_temperature)]
Text = Annotated[str, Field(max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class MetricValue(_Part):
    """A mean over clips and, where it was measured, its 95 % interval."""

    mean: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None


class LossResult(_Part):
    """Nats a code, in all and of each codebook."""

    nats: Number
    nats_codebook: Annotated[list[Number], Field(min_length=1, max_length=1024)]
    bits_second: Number


class LossResults(_Part):
    """The model's loss and two baselines."""

    clips: Count
    model: LossResult
    unigram: LossResult
    uniform: LossResult


class SamplingSettings(_Part):
    """How clips were generated."""

    guidance: Number


class EvaluationSettings(_Part):
    """What was measured on."""

    n: Count
    split: Text
    sampling: SamplingSettings


class EmbedderName(_Part):
    """An embedder."""

    name: Text


class DistanceSettings(_Part):
    """What the Fréchet distance was measured by."""

    embedding: EmbedderName
    n: Count


class ExportIdentity(_Part):
    """The weights that were measured."""

    sha256: Text


class EvaluationFile(_Part):
    """`evaluate.json`."""

    loss: LossResults
    temperatures: Annotated[dict[Temperature, dict[Text, MetricValue]], Field(min_length=1)]
    ceiling: dict[Text, MetricValue]
    floor: dict[Text, MetricValue]
    settings: EvaluationSettings
    distance: DistanceSettings
    export: ExportIdentity
