"""Settings of generation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import create_model, model_validator

from pipeline.common.settings import Settings, parse_settings
from pipeline.generation.filters import FILTERS, SamplingFilter

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SamplingSettings(Settings):
    """How codes are sampled, `sampling.*` on the command line: guidance, and the value of each filter by its name.

    A filter without a value is off. `sampling.model_copy(update={"temperature": 0.7})` changes a value.

    Attributes:
        guidance: The scale of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598). 1: no guidance; above 1
            moves the logits further away from those without a prompt.
    """

    guidance: float

    @classmethod
    def with_extensions(cls) -> type[SamplingSettings]:
        """The class with a field for each registered filter."""
        return _with_filters(_sorted_filters())

    @model_validator(mode="before")
    @classmethod
    def _turn_off_missing_filters(cls, values: dict[str, object]) -> dict[str, object]:
        return {name: filter_class.off for name, filter_class in FILTERS.items()} | values

    def build_filters(self, codebooks: int, device: torch.device) -> list[Callable[[Tensor], Tensor]]:
        """The functions of logits [B, K, C] that are applied one after the other.

        Raises:
            InputError: A value does not fit the model.
        """
        filters = [(cls, getattr(self, name)) for name, cls in _sorted_filters()]
        return [cls.model_validate({"value": v}).build(codebooks, device) for cls, v in filters if v != cls.off]


def _sorted_filters() -> tuple[tuple[str, type[SamplingFilter]], ...]:
    return tuple(sorted(FILTERS.items(), key=lambda item: item[1].order))


@functools.cache
def _with_filters(filters: tuple[tuple[str, type[SamplingFilter]], ...]) -> type[SamplingSettings]:
    fields: dict[str, Any] = {}
    for name, filter_class in filters:
        field = filter_class.model_fields["value"]
        fields[name] = (field.annotation, field)
    return create_model("SamplingSettings", __base__=SamplingSettings, __doc__=SamplingSettings.__doc__, **fields)


def sampling_settings(**values: object) -> SamplingSettings:
    """The settings group `sampling` with these values, `temperature=0.7`; other filters and guidance are off.

    Raises:
        InputError: A value is not valid.
    """
    return parse_settings(SamplingSettings.with_extensions(), {"guidance": 1, **values}, "sampling.")
