"""What a condition defines: its settings, and the module that turns its values into vectors of the prefix.

Letters: B clips, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.common.messages import nearest, suggest
from pipeline.common.setting_types import Fraction
from pipeline.common.settings import Settings

if TYPE_CHECKING:
    from pipeline.models.model_config import ModelConfig

_LISTED_VALUES = 20  # in a message


@dataclass(frozen=True)
class LabelValues:
    """The values of a label in the training data.

    Attributes:
        kind: `category`, `number` or `tags`: the kind of condition that suits them best.
        values: The values as texts; None where there are too many to list.
        low: The smallest number, if all values are numbers.
        high: The largest number.
    """

    kind: str
    values: list[str] | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ValueChoices:
    """What a user can choose from: some of the values, or a number.

    Attributes:
        values: The values as texts; empty: a number.
        limit: How many of the values a clip can have; None: any number.
        low: The smallest number.
        high: The largest number.
    """

    values: Sequence[str] = ()
    limit: int | None = 1
    low: float = 0.0
    high: float = 0.0


class ConditionSettings(Settings):
    """The settings of a condition, as in `config.json`. A subclass adds what its module has to know.

    Attributes:
        kind: The name of the class in `CONDITIONS`.
        name: Of the label; the name of the condition in every mapping of values.
        dropout: The fraction of training clips for which this condition alone is replaced by its null vector.
    """

    kind: str
    name: str
    dropout: Fraction

    @classmethod
    @abstractmethod
    def from_label(cls, kind: str, name: str, dropout: float, label: LabelValues) -> ConditionSettings:
        """The settings of a condition on a label.

        Raises:
            InputError: The label has other values than this kind needs.
        """

    @abstractmethod
    def build(self, config: ModelConfig, model: nn.Module) -> Condition:
        """The module of the condition, with new weights.

        Args:
            config: The model's.
            model: The model, of which the module becomes a part.
        """

    def describe(self) -> str:
        """The name, and what its values are, in words."""
        return f"{self.name} ({self.kind})"

    def positions(self, config: ModelConfig) -> int:
        """The number of positions in the prefix of a model."""
        return 1


class Condition(nn.Module):
    """Turns the values of a condition into vectors, and missing values into a learned null vector."""

    def __init__(self, settings: ConditionSettings, positions: int = 1) -> None:
        super().__init__()
        self.name, self.dropout, self.positions = settings.name, settings.dropout, positions

    def forward(self, values: Tensor | None, batch: int, drop: Tensor | None = None) -> Tensor:
        """The vectors of the prefix: [B, positions, D].

        Args:
            values: [B, ...]; None: no clip has a value.
            batch: B.
            drop: bool [B], clips that get the null vector instead of their value.
        """
        null = self.null_vector().expand(batch, self.positions, -1)
        if values is None:
            return null
        vectors, missing = self.embed(values), self.is_missing(values)
        is_null = drop if missing is None else missing if drop is None else missing | drop
        return vectors if is_null is None else torch.where(is_null[:, None, None], null, vectors)

    @abstractmethod
    def null_vector(self) -> Tensor:
        """The learned vector of a missing value: [D]."""

    @abstractmethod
    def embed(self, values: Tensor) -> Tensor:
        """Values [B, ...] -> [B, positions, D]; arbitrary where a value is missing."""

    def is_missing(self, values: Tensor) -> Tensor | None:
        """Which of the values [B, ...] are missing: bool [B]; None: none is."""
        return None

    @abstractmethod
    def init_weights(self) -> None:
        """Initialize the weights that PyTorch does not initialize."""


class LabelCondition(Condition):
    """A condition on a label: one position."""

    def __init__(self, settings: ConditionSettings, width: int) -> None:
        super().__init__(settings)
        self.null = nn.Parameter(torch.empty(width))

    def null_vector(self) -> Tensor:
        """The learned vector of a missing value: [D]."""
        return self.null

    def init_weights(self) -> None:
        """Initialize the null vector."""
        nn.init.normal_(self.null, std=0.02)

    @abstractmethod
    def encode(self, value: object) -> Tensor:
        """The value of a clip as a tensor [...], a row of the values of a batch. None: the clip has no value.

        Raises:
            InputError: The model does not know the value; the message names the nearest.
        """

    def warning(self, value: object) -> str | None:
        """A warning about a value that `encode` accepts, but that training did not have; None: there is none."""
        return None

    def knows(self, value: object) -> bool:
        """Whether training had a value."""
        try:
            self.encode(value)
        except InputError:
            return False
        return self.warning(value) is None

    @property
    def choices(self) -> ValueChoices | None:
        """What a user can choose from; None: any text."""
        return None

    def encode_all(self, values: Sequence[object]) -> Tensor:
        """The values of a batch as a tensor [B, ...], where unknown values are missing."""
        rows = []
        for value in values:
            try:
                rows.append(self.encode(value))
            except InputError:
                rows.append(self.encode(None))
        return torch.stack(rows)


def describe_values(value: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown value: the nearest, and the known ones."""
    values = list(known)
    near = _nearest_number(value, values) or nearest(str(value), values)
    rest = len(values) - _LISTED_VALUES
    listed = ", ".join(values[:_LISTED_VALUES]) + (f" and {rest} more" if rest > 0 else "")
    return f"{suggest(near)}values are {listed}"


def _nearest_number(value: object, known: list[str]) -> str | None:
    """The nearest of values that are numbers."""
    try:
        return min(known, key=lambda text: abs(float(text) - float(str(value))), default=None)
    except ValueError:
        return None
