"""A set of tags: the mean of their vectors.

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


@CONDITIONS.register("tags")
class TagsSettings(ListedValuesSettings):
    """The settings of a set of tags."""

    @classmethod
    def from_label(cls, kind: str, name: str, dropout: float, label: LabelValues) -> TagsSettings:
        """See `ConditionSettings.from_label`."""
        if not label.values:
            raise InputError(f"conditions={name}: it has more values than {kind} can have: give another label")
        return cls(kind=kind, name=name, dropout=dropout, values=label.values)

    def describe(self) -> str:
        """The name and the number of tags."""
        return f"{self.name} ({len(self.values):,} tags)"

    def build(self, config: ModelConfig, model: nn.Module) -> Condition:
        """See `ConditionSettings.build`."""
        return Tags(self, config.width)


class TagTable(nn.Embedding):
    """The vectors of all tags."""

    def forward(self, weights: Tensor) -> Tensor:
        """Weights of the tags [B, V] -> sums of their vectors [B, D]."""
        return weights.to(self.weight.dtype) @ self.weight


class Tags(ValueTable):
    """A table of vectors. Values are float32 [B, V]: 1 for each tag of a clip; without any, the value is missing."""

    def __init__(self, settings: TagsSettings, width: int) -> None:
        super().__init__(settings, TagTable(len(settings.values), width), width)

    @property
    def choices(self) -> ValueChoices:
        """See `LabelCondition.choices`."""
        return ValueChoices([*self.indices], limit=None)

    def encode(self, value: object) -> Tensor:
        """See `LabelCondition.encode`. The value is a list of tags, or one tag."""
        tags = [] if value is None else [str(tag) for tag in value] if isinstance(value, list | tuple) else [str(value)]
        for tag in tags:
            if tag not in self.indices:
                raise self.unknown_value(tag)
        row = torch.zeros(len(self.indices))
        row[[self.indices[tag] for tag in tags]] = 1
        return row

    def is_missing(self, values: Tensor) -> Tensor:
        """Which rows [B, V] have no tag."""
        return ~values.any(1)

    def embed(self, values: Tensor) -> Tensor:
        """Rows [B, V] -> [B, 1, D]."""
        means: Tensor = self.table(values / values.sum(1, keepdim=True).clamp(min=1))
        return means[:, None]
