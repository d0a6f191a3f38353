"""Conditions whose values are listed, each with a vector of its own: the base of categories and tags.

Letters: D width, V values.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen
from torch import nn

from pipeline.common.errors import InputError
from pipeline.models.conditions.base import ConditionSettings, LabelCondition, describe_values


class ListedValuesSettings(ConditionSettings):
    """The settings of such a condition: its values, as texts."""

    values: Annotated[list[str], MinLen(1)]


class ValueTable(LabelCondition):
    """A table of vectors [V, D]."""

    def __init__(self, settings: ListedValuesSettings, table: nn.Embedding, width: int) -> None:
        super().__init__(settings, width)
        self.table = table
        self.indices = {value: index for index, value in enumerate(settings.values)}

    def init_weights(self) -> None:
        """Initialize the table like the embedding of a step."""
        super().init_weights()
        nn.init.normal_(self.table.weight, std=0.14)

    def unknown_value(self, value: object) -> InputError:
        """The error about a value that is not listed; it names the nearest."""
        return InputError(f"conditions.{self.name}={value}: unknown value; {describe_values(value, self.indices)}")
