"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) by all conditions together, or by each alone.

One scale w moves the logits away from those of a model without any condition: none + w (all - none). A scale for each
condition i moves them away from those of a model without this condition: all + sum over i of (w_i - 1) (all -
all without i). The clips that a model reads without some of their conditions are further rows of its batch.

Letters: B clips, R rows, K codebooks, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.messages import unknown_choice

Values = Mapping[str, Tensor]  # the values [B, ...] of conditions, by the condition's name
Scale = float | Mapping[str, float]  # of all conditions together, or by the condition's name


@dataclass(frozen=True)
class Guidance:
    """The rows that a batch needs for guidance.

    Attributes:
        scales: The scale of each group of B rows after the first, which has all conditions.
        removed: The conditions that each of these groups lacks.
    """

    scales: tuple[float, ...] = ()
    removed: tuple[frozenset[str], ...] = ()

    @classmethod
    def plan(cls, scale: Scale, conditions: Collection[str]) -> Guidance:
        """The guidance of clips that have values of these conditions."""
        if not isinstance(scale, Mapping):
            return cls((scale,), (frozenset(conditions),)) if scale != 1 and conditions else cls()
        scales = {name: value for name, value in scale.items() if value != 1 and name in conditions}
        return cls(tuple(scales.values()), tuple(frozenset({name}) for name in scales))

    @property
    def rows_per_clip(self) -> int:
        """R / B."""
        return 1 + len(self.scales)

    def list_values(self, values: Values) -> list[Values]:
        """The values of each group of rows."""
        return [
            values,
            *({name: each for name, each in values.items() if name not in names} for names in self.removed),
        ]

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [B, K, C] from those of all rows [R, K, C]; also of some of the codebooks."""
        if not self.scales:
            return logits
        complete, *reduced = logits.chunk(self.rows_per_clip)
        guided = reduced[0] + self.scales[0] * (complete - reduced[0])  # of one group these bits, as in older versions
        for scale, group in zip(self.scales[1:], reduced[1:], strict=True):
            guided = guided + (scale - 1) * (complete - group)
        return guided


def check_scale(scale: Scale, conditions: Iterable[str]) -> None:
    """Raises InputError if a scale names a condition that is not one of the model's."""
    known = list(conditions)
    for name in scale if isinstance(scale, Mapping) else ():
        if name not in known:
            raise InputError(unknown_choice("sampling.guidance", name, known, "condition of this model"))
