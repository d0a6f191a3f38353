"""The results of an evaluation: the content of `evaluate.json`, as pydantic models that also check a file.

Models keep what they do not declare: a file has more than its readers need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from pipeline.common.errors import InputError, one_line, redact_all
from pipeline.common.files import write_atomic


def _is_temperature(text: str) -> str:
    if not 0 <= float(text) < math.inf:
        raise ValueError(f"{text!r:.40} is not a temperature")
    return text


Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # the range that can be plotted
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[str, Field(max_length=40), AfterValidator(_is_temperature)]
Text = Annotated[str, Field(max_length=1000)]
ORIGINALS = "originals"  # the row of the recordings from which the clips were encoded
CEILING = "ceiling (codec)"  # the row of the codec's reconstructions


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON, without those that were not measured."""
        return self.model_dump(exclude_unset=True)


class MetricValue(_Model):
    """A value of a set of sounds; for a mean over n clips with its 95 % confidence interval."""

    mean: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    n: Count | None = None

    def format(self, is_percent: bool = False) -> str:
        """The value with its interval."""
        scale, digits = (100, 0) if is_percent else (1, 3 if abs(self.mean) < 10 else 1)
        text = f"{scale * self.mean:.{digits}f}"
        if self.interval is not None:
            low, high = (scale * edge for edge in self.interval)
            text += f" [{low:.{digits}f}..{high:.{digits}f}]"
        return text


MetricValues = dict[Text, MetricValue]  # by the name of the metric


class LossResult(_Model):
    """A cross-entropy: nats per code over all codebooks and of each; bits per second of audio are of all codebooks."""

    nats: Number
    nats_codebook: Annotated[list[Number], Field(min_length=1, max_length=1024)]
    bits_second: Number


class LossResults(_Model):
    """The loss over `clips` clips, and of two baselines: the code frequencies of training clips, and 1 / size."""

    clips: Count
    model: LossResult
    unigram: LossResult
    uniform: LossResult

    def rows(self) -> dict[str, LossResult]:
        """The losses by name."""
        return {"model": self.model, "unigram": self.unigram, "uniform": self.uniform}


class RecordedSampling(_Model):
    """How sounds were sampled."""

    guidance: Number | dict[Text, Number]


class RecordedSettings(_Model):
    """The settings of the evaluation, with the number of clips that there were."""

    n: Count
    split: Text
    sampling: RecordedSampling


class EmbedderName(_Model):
    """An embedder."""

    name: Text


class AppliedProtocol(_Model):
    """The protocol of an evaluation, and the numbers of clips that it leaves out, and whose labels are not used."""

    name: Text
    title: Text
    left_out: dict[Text, Count] = {}
    bad_labels: dict[Text, Count] = {}

    def __str__(self) -> str:
        """The title, and what was left out."""
        parts = [f"left out: {count} ({reason})" for reason, count in self.left_out.items()]
        parts += [f"pitch labels not used: {count} ({reason})" for reason, count in self.bad_labels.items()]
        return "; ".join([self.title, *parts])


class DistanceReference(_Model):
    """The embedder of distances, and the number of clips to which they are measured."""

    embedding: EmbedderName
    n: Count


class ExportIdentity(_Model):
    """The weights that were evaluated."""

    sha256: Text


class AnalysisResult(_Model):
    """The result of an analysis: a table, and what it says.

    Attributes:
        title: The title of the table.
        text: One or two sentences about the figures.
        rows: The figures by title of the row, then of the column.
        percents: The columns whose values are fractions that are shown as percentages.
        notes: Lines below the table.
        details: What a section of the report needs beside the table.
    """

    title: Text
    text: Text
    rows: dict[Text, MetricValues]
    percents: list[Text] = []
    notes: list[Text] = []
    details: dict[Text, JsonValue] = {}

    def columns(self) -> dict[str, list[str]]:
        """The texts of the cells of each column by its heading; "-" where there is no value."""
        names = dict.fromkeys(name for values in self.rows.values() for name in values)
        return {
            f"{name} (%)" if name in self.percents else name: [
                values[name].format(name in self.percents) if name in values else "-" for values in self.rows.values()
            ]
            for name in names
        }


class EvaluationResult(_Model):
    """The content of `evaluate.json`: losses, and metrics of generations between a floor and a ceiling."""

    loss: LossResults
    temperatures: Annotated[dict[Temperature, MetricValues], Field(min_length=1)]
    ceiling: MetricValues
    floor: MetricValues
    originals: MetricValues = {}
    distance: DistanceReference
    protocol: AppliedProtocol | None = None
    settings: RecordedSettings
    export: ExportIdentity
    analyses: dict[Text, AnalysisResult] = {}

    def rows(self) -> dict[str, MetricValues]:
        """The metrics by title of the sounds: floor, each temperature, ceiling, originals where they were read."""
        rows = {f"temperature {temperature}": values for temperature, values in self.temperatures.items()}
        originals = {ORIGINALS: self.originals} if self.originals else {}
        return {"floor": self.floor, **rows, CEILING: self.ceiling, **originals}

    def flatten(self) -> dict[str, float]:
        """All figures by flat names: loss/model, t0.7/pitch, ceiling/fidelity..."""
        flat = {f"loss/{name}": loss.nats for name, loss in self.loss.rows().items()}
        flat["loss/bits_second"] = self.loss.model.bits_second
        rows = {f"t{temperature}": values for temperature, values in self.temperatures.items()}
        flat |= {
            f"{analysis}/{row}/{column}": value.mean
            for analysis, result in self.analyses.items()
            for row, values in result.rows.items()
            for column, value in values.items()
        }
        for row, values in {"floor": self.floor, "ceiling": self.ceiling, "originals": self.originals, **rows}.items():
            flat |= {f"{row}/{name}": value.mean for name, value in values.items()}
        return flat


def temperature_row(temperature: float) -> str:
    """The title of the row of the generations at a temperature."""
    return f"temperature {temperature:g}"


def read_evaluation(path: Path) -> EvaluationResult | None:
    """Read and check an `evaluate.json`; None if there is no such file.

    Raises:
        InputError: The file is not one that pipeline.evaluate writes.
    """
    if not path.is_file():
        return None
    try:
        return EvaluationResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"evaluation={path}: not a file that pipeline.evaluate writes ({one_line(error):.200})"
        ) from None


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write results atomically as JSON, without secrets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(redact_all(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
