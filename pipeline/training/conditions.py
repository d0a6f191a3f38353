"""The conditions of a run: which labels the model reads, with the values that they have in the datasets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pipeline.common.errors import InputError
from pipeline.common.messages import nearest, suggest
from pipeline.data.labels import LabelCounter, LabelVocabulary, Vocabularies
from pipeline.models.conditions import CONDITIONS, PROMPT
from pipeline.models.conditions.base import ConditionSettings, LabelCondition, LabelValues
from pipeline.models.model_config import ModelConfig
from pipeline.training.settings import TrainSettings

_LISTED = 8  # values in a message


def requested_kinds(conditions: Sequence[str | dict[str, str]]) -> dict[str, str | None]:
    """The names of `conditions=` in order, each with its kind if the setting names one.

    Raises:
        InputError: a name is repeated, or an item names no condition, or several.
    """
    kinds: dict[str, str | None] = {}
    for item in conditions:
        named = {item: None} if isinstance(item, str) else dict(item)
        if len(named) != 1 or named.keys() & kinds.keys():
            raise InputError(f"conditions={[*conditions]}: expected names, or {{NAME: KIND}}, each name once")
        kinds |= named
    if not kinds:
        raise InputError(f"conditions=[]: expected at least one; [{PROMPT}] is the default")
    return kinds


def label_names(conditions: Sequence[str | dict[str, str]]) -> tuple[str, ...]:
    """The names of the labels among `conditions=`."""
    return tuple(name for name in requested_kinds(conditions) if name != PROMPT)


def merge_vocabularies(parts: Iterable[Vocabularies]) -> Vocabularies:
    """The vocabularies of all datasets of a mixture."""
    counter = LabelCounter()
    for part in parts:
        counter.add_all(part)
    return counter.vocabularies()


def condition_settings(
    settings: TrainSettings, vocabularies: Vocabularies, base: Sequence[ConditionSettings] = ()
) -> list[dict[str, Any]]:
    """The conditions of the settings, for labels with these vocabularies, as in the config of a model.

    Args:
        settings: the settings.
        vocabularies: the values of each label in the datasets.
        base: the conditions of the model that is fine-tuned; they keep their values.

    Raises:
        InputError: no dataset has a label, or its values do not suit its kind.
    """
    kinds = requested_kinds(settings.conditions)
    dropouts = settings.condition_dropout
    if isinstance(dropouts, dict) and (unknown := [*dropouts.keys() - kinds.keys()]):
        raise InputError(
            f"condition_dropout.{unknown[0]}={dropouts[unknown[0]]}: expected names of conditions=, {', '.join(kinds)}"
        )
    known = {each.name: each for each in base}
    conditions = []
    for name, kind in kinds.items():
        dropout = dropouts.get(name, 0.0) if isinstance(dropouts, dict) else dropouts
        dropout = float(dropout) if len(kinds) > 1 else 0.0  # a single condition is dropped by model.prompt_dropout
        if name in known and kind in (None, known[name].kind):
            conditions.append({**known[name].to_dict(), "dropout": dropout})
        elif name == PROMPT:
            conditions.append({"kind": PROMPT, "name": PROMPT, "dropout": dropout})
        else:
            label = _find_label(name, vocabularies)
            kind = kind or label.kind
            values = LabelValues(label.kind, None if label.values is None else [*label.values], label.low, label.high)
            entry = CONDITIONS.get(kind, f"conditions.{name}")
            conditions.append(entry.from_label(kind, name, dropout, values).to_dict())
    return conditions


def _find_label(name: str, vocabularies: Vocabularies) -> LabelVocabulary:
    if name in vocabularies:
        return vocabularies[name]
    if not vocabularies:
        raise InputError(
            f"conditions={name}: the clips of these shards have no labels; preprocess again with labels, or set "
            f"conditions=[{PROMPT}]"
        )
    suggestion = suggest(nearest(name, vocabularies))
    raise InputError(
        f"conditions={name}: the clips of these shards have no such label; {suggestion}labels are "
        f"{', '.join(vocabularies)}"
    )


def unknown_values(config: ModelConfig, vocabularies: Vocabularies) -> list[str]:
    """A line for each label of which the datasets have values that the model does not know: they count as missing."""
    lines = []
    for settings in config.condition_settings:
        condition, label = settings.build(config, nn.Module()), vocabularies.get(settings.name)
        if label is None or not isinstance(condition, LabelCondition):
            continue
        values = [*(label.values or {})] or [str(number) for number in (label.low, label.high) if number is not None]
        missing = condition.is_missing(condition.encode_all(values)) if values else None
        if missing is not None and missing.any():
            unknown = [str(value) for value, is_unknown in zip(values, missing.tolist(), strict=True) if is_unknown]
            listed = ", ".join(unknown[:_LISTED]) + (", ..." if len(unknown) > _LISTED else "")
            lines.append(f"{len(unknown)} values of {settings.name} are unknown to the base and not used: {listed}")
    return lines
