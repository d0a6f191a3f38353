"""Vocabularies of labels: the values that the clips of a dataset have, and how many clips have each.

A label is a number, a text (a category), or a list of texts (a set of tags).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, InstanceOf, NonNegativeInt, model_validator

MAX_VALUES = 1000  # a label with more distinct values is a name, not a class
MAX_NUMBER = 2**53  # larger numbers, infinite ones and NaN count as texts


class LabelVocabulary(BaseModel):
    """The values of a label.

    Attributes:
        kind: Whether clips have one text, one number, or a list of texts.
        clips: Number of clips that have the label.
        low, high: The smallest and the largest number.
        values: Number of clips by value, which is written as a text; None where more than `MAX_VALUES` differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["category", "number", "tags"]
    clips: NonNegativeInt
    low: int | float | None
    high: int | float | None
    values: dict[InstanceOf[str], NonNegativeInt] | None  # metadata in other encodings has surrogates

    @model_validator(mode="after")
    def _check_numbers(self) -> LabelVocabulary:
        if self.kind == "number" and not all(abs(float(value)) <= MAX_NUMBER for value in self.values or {}):
            raise ValueError("a value is not a number")
        if (self.kind == "number") != (self.low is not None and self.high is not None):
            raise ValueError("low and high are those of numbers")
        return self


Vocabularies = dict[InstanceOf[str], LabelVocabulary]  # by the name of the label


@dataclass
class _Counts:
    kinds: set[str] = field(default_factory=set)
    clips: int = 0
    numbers: list[float] = field(default_factory=list)  # the smallest and the largest
    values: Counter[str] | None = field(default_factory=Counter)

    def add(self, kind: str, clips: int, numbers: list[float], values: Mapping[str, int] | None) -> None:
        self.kinds.add(kind)
        self.clips += clips
        self.numbers = [min(self.numbers + numbers), max(self.numbers + numbers)] if self.numbers + numbers else []
        if self.values is not None and values is not None:
            self.values.update(values)
        if values is None or (self.values is not None and len(self.values) > MAX_VALUES):
            self.values = None

    def vocabulary(self) -> LabelVocabulary:
        kind: Any = "tags" if "tags" in self.kinds else "number" if self.kinds == {"number"} else "category"
        low, high = self.numbers if kind == "number" else (None, None)
        order: Any = (lambda item: float(item[0])) if kind == "number" else None
        values = None if self.values is None else dict(sorted(self.values.items(), key=order))
        return LabelVocabulary(kind=kind, clips=self.clips, low=low, high=high, values=values)


class LabelCounter:
    """Counts the labels of clips; the order in which they are added does not matter."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    def add(self, labels: Mapping[str, Any]) -> None:
        """Add a clip."""
        for name, value in labels.items():
            counts = self._counts.setdefault(name, _Counts())
            if isinstance(value, list):
                counts.add("tags", 1, [], dict.fromkeys(map(str, value), 1))
            elif type(value) in (int, float) and abs(value) <= MAX_NUMBER:
                counts.add("number", 1, [value], {str(value): 1})
            else:
                counts.add("category", 1, [], {str(value): 1})

    def add_all(self, vocabularies: Vocabularies) -> None:
        """Add the clips of a shard."""
        for name, label in vocabularies.items():
            numbers = [number for number in (label.low, label.high) if number is not None]
            self._counts.setdefault(name, _Counts()).add(label.kind, label.clips, numbers, label.values)

    def vocabularies(self) -> Vocabularies:
        """The vocabularies of the clips that were added, sorted by the names of the labels."""
        return {name: self._counts[name].vocabulary() for name in sorted(self._counts)}


def dump_vocabularies(vocabularies: Vocabularies) -> dict[str, Any]:
    """Vocabularies as JSON."""
    return {name: label.model_dump() for name, label in vocabularies.items()}


def describe_vocabulary(label: LabelVocabulary) -> str:
    """A vocabulary in a few words: `42 values`."""
    if label.values is not None:
        return f"{len(label.values):,} {'tags' if label.kind == 'tags' else 'values'}"
    return f"{label.low:g} to {label.high:g}" if label.low is not None else f"more than {MAX_VALUES:,} values"
