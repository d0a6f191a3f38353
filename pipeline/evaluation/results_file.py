"""The parts of `evaluate.json` that a report or a model card reads, as pydantic models."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_temperature(text: str) -> str:
    if not 0 <= float(text) < math.inf:
        raise ValueError(f"{text!r:.40} is not a temperature")
    return text


Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # the range that can be plotted
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[str, Field(max_length=40), AfterValidator(_is_temperature)]
Text = Annotated[str, Field(max_length=1000)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class MetricValue(_Model):
    """A mean over clips and, if it was measured, its 95 % interval."""

    mean: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None


class LossResult(_Model):
    """Nats per code, over all codebooks and of each."""

    nats: Number
    nats_codebook: Annotated[list[Number], Field(min_length=1, max_length=1024)]
    bits_second: Number


class LossResults(_Model):
    """The loss of the model and of the two baselines."""

    clips: Count
    model: LossResult
    unigram: LossResult
    uniform: LossResult


class SamplingSettings(_Model):
    """The sampling settings."""

    guidance: Number


class EvaluationSettings(_Model):
    """The settings of the evaluation."""

    n: Count
    split: Text
    sampling: SamplingSettings


class EmbedderName(_Model):
    """The name of an embedder."""

    name: Text


class DistanceSettings(_Model):
    """The embedder and the number of reference clips of the Fréchet distance."""

    embedding: EmbedderName
    n: Count


class ExportIdentity(_Model):
    """The weights that were evaluated."""

    sha256: Text


class EvaluationFile(_Model):
    """The content of `evaluate.json`."""

    loss: LossResults
    temperatures: Annotated[dict[Temperature, dict[Text, MetricValue]], Field(min_length=1)]
    ceiling: dict[Text, MetricValue]
    floor: dict[Text, MetricValue]
    settings: EvaluationSettings
    distance: DistanceSettings
    export: ExportIdentity
