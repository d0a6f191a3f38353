"""A number within the range of a label's values.

The vector is a linear function of the number, scaled to 0..1, and of its cosines and sines of 1/2 to 64 periods over
the range: numbers between those of the training data have vectors between theirs.

Letters: B clips, D width, F features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.models.conditions import CONDITIONS
from pipeline.models.conditions.base import Condition, ConditionSettings, LabelCondition, LabelValues, ValueChoices

if TYPE_CHECKING:
    from pipeline.models.model_config import ModelConfig

_FREQUENCIES = 8


@CONDITIONS.register("number")
class NumberSettings(ConditionSettings):
    """The settings of a number: its range."""

    low: float
    high: float

    @classmethod
    def from_label(cls, kind: str, name: str, dropout: float, label: LabelValues) -> NumberSettings:
        """See `ConditionSettings.from_label`."""
        if label.low is None or label.high is None:
            raise InputError(f"conditions={name}: its values are not numbers: give {name}: {label.kind}")
        return cls(kind=kind, name=name, dropout=dropout, low=label.low, high=label.high)

    def describe(self) -> str:
        """The name and the range."""
        return f"{self.name} ({self.low:g} to {self.high:g})"

    def build(self, config: ModelConfig, model: nn.Module) -> Condition:
        """See `ConditionSettings.build`."""
        return Number(self, config.width)


class Number(LabelCondition):
    """A linear layer over features of a number. Values are float32 [B], NaN where missing."""

    def __init__(self, settings: NumberSettings, width: int) -> None:
        super().__init__(settings, width)
        self.low, self.high = settings.low, settings.high
        self.linear = nn.Linear(1 + 2 * _FREQUENCIES, width)

    def encode(self, value: object) -> Tensor:
        """See `LabelCondition.encode`."""
        if value is None:
            return torch.tensor(math.nan)
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"conditions.{self.name}={value}: expected a number from {self.low:g} to {self.high:g}")
        return torch.tensor(number)

    def warning(self, value: object) -> str | None:
        """A warning about a number outside the range of the training data."""
        if self.low <= float(str(value)) <= self.high:
            return None
        return f"outside the range of the training data, {self.low:g} to {self.high:g}: the model may not follow it"

    @property
    def choices(self) -> ValueChoices:
        """See `LabelCondition.choices`."""
        return ValueChoices(low=self.low, high=self.high)

    def is_missing(self, values: Tensor) -> Tensor:
        """Which of the numbers [B] are missing."""
        return values.isnan()

    def embed(self, values: Tensor) -> Tensor:
        """Numbers [B] -> [B, 1, D]."""
        scaled = (values.float().nan_to_num() - self.low) / ((self.high - self.low) or 1.0)  # [B], 0..1
        angles = scaled[:, None] * math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=values.device)
        features = torch.cat([scaled[:, None], angles.cos(), angles.sin()], 1)  # [B, F]
        vectors: Tensor = self.linear(features.to(self.null.dtype))
        return vectors[:, None]
