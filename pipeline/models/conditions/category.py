"""A category: one of the values of a label, each with a vector of its own.

Letters: B clips, D width, V values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.models.conditions import CONDITIONS
from pipeline.models.conditions.base import Condition, LabelValues, ValueChoices
from pipeline.models.conditions.value_table import ListedValuesSettings, ValueTable

if TYPE_CHECKING:
    from pipeline.models.model_config import ModelConfig

_MISSING = -1


@CONDITIONS.register("category")
class CategorySettings(ListedValuesSettings):
    """The settings of a category."""

    @classmethod
    def from_label(cls, kind: str, name: str, dropout: float, label: LabelValues) -> CategorySettings:
        """See `ConditionSettings.from_label`."""
        if label.kind not in (kind, "number"):
            raise InputError(f"conditions={name}: clips have several values of {name}, not one: give {name}: tags")
        if not label.values:
            raise InputError(f"conditions={name}: it has more values than a {kind} can have: give another label")
        return cls(kind=kind, name=name, dropout=dropout, values=label.values)

    def describe(self) -> str:
        """The name and the number of values."""
        return f"{self.name} ({len(self.values):,} values)"

    def build(self, config: ModelConfig, model: nn.Module) -> Condition:
        """See `ConditionSettings.build`."""
        return Category(self, config.width)


class Category(ValueTable):
    """A table of vectors. Values are indices: int64 [B], -1 where missing."""

    def __init__(self, settings: CategorySettings, width: int) -> None:
        super().__init__(settings, nn.Embedding(len(settings.values), width), width)

    @property
    def choices(self) -> ValueChoices:
        """See `LabelCondition.choices`."""
        return ValueChoices([*self.indices])

    def encode(self, value: object) -> Tensor:
        """See `LabelCondition.encode`."""
        if value is None:
            return torch.tensor(_MISSING)
        is_whole = isinstance(value, float) and value.is_integer()
        texts = [str(value), f"{value:.0f}" if is_whole else f"{value}.0"]  # 60 and 60.0 are the same number
        index = next((self.indices[text] for text in texts if text in self.indices), None)
        if index is None:
            raise self.unknown_value(value)
        return torch.tensor(index)

    def is_missing(self, values: Tensor) -> Tensor:
        """Which of the indices [B] are missing."""
        return values == _MISSING

    def embed(self, values: Tensor) -> Tensor:
        """Indices [B] -> [B, 1, D]."""
        vectors: Tensor = self.table(values.clamp(min=0))
        return vectors[:, None]
