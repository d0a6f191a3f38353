"""A set of tags: the mean of their vectors.

Letters: B clips, D width, V values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.models.conditions import CONDITIONS
from pipeline.models.conditions.base import (
    Condition,
    ConditionSettings,
    LabelCondition,
    LabelValues,
    ValueChoices,
    describe_values,
)

if TYPE_CHECKING:
    from pipeline.models.model_config import ModelConfig


@CONDITIONS.register("tags")
class TagsSettings(ConditionSettings):
    """The settings of a set of tags: all tags."""

    values: Annotated[list[str], MinLen(1)]

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


class Tags(LabelCondition):
    """A table of vectors. Values are float32 [B, V]: 1 for each tag of a clip; without any, the value is missing."""

    def __init__(self, settings: TagsSettings, width: int) -> None:
        super().__init__(settings, width)
        self.table = TagTable(len(settings.values), width)
        self._indices = {value: index for index, value in enumerate(settings.values)}

    def init_weights(self) -> None:
        """Initialize the table like the embedding of a step."""
        super().init_weights()
        nn.init.normal_(self.table.weight, std=0.14)

    @property
    def choices(self) -> ValueChoices:
        """See `LabelCondition.choices`."""
        return ValueChoices([*self._indices], limit=None)

    def encode(self, value: object) -> Tensor:
        """See `LabelCondition.encode`. The value is a list of tags, or one tag."""
        tags = [] if value is None else [str(tag) for tag in value] if isinstance(value, list | tuple) else [str(value)]
        for tag in tags:
            if tag not in self._indices:
                raise InputError(f"conditions.{self.name}={tag}: unknown value; {describe_values(tag, self._indices)}")
        row = torch.zeros(len(self._indices))
        row[[self._indices[tag] for tag in tags]] = 1
        return row

    def is_missing(self, values: Tensor) -> Tensor:
        """Which rows [B, V] have no tag."""
        return ~values.any(1)

    def embed(self, values: Tensor) -> Tensor:
        """Rows [B, V] -> [B, 1, D]."""
        means: Tensor = self.table(values / values.sum(1, keepdim=True).clamp(min=1))
        return means[:, None]
