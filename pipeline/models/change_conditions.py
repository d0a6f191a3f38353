"""The weights of a model with other conditions: its prefix changes, and its steps keep their positions' vectors.

    positions of the base   prompt           step 0   step 1 ...
    with a new condition    prompt   pitch   step 0   step 1 ...

Conditions that the base does not have keep the weights of the new model, and vectors of zeros at their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.model_config import ModelConfig

if TYPE_CHECKING:
    from pipeline.models.codec_gpt import CodecGPT

_POSITIONS = "backbone.wpe.weight"
_CONDITIONS = "conditions."


def new_conditions(base: ModelConfig, config: ModelConfig) -> list[str]:
    """The names of the conditions of a config that the base does not have, or has with other values."""
    known = _by_name(base)
    return [name for name, settings in _by_name(config).items() if known.get(name) != settings]


def change_conditions(base: CodecGPT, model: CodecGPT) -> dict[str, Tensor]:
    """The state dict for `model`, from the weights of a base that differs in nothing but its conditions."""
    old, new = base.state_dict(), model.state_dict()
    fresh = new_conditions(base.config, model.config)
    names_before, names = [*_by_name(base.config)], [*_by_name(model.config)]
    for name in new:
        source = name
        if name.startswith(_CONDITIONS):
            number, _, rest = name.removeprefix(_CONDITIONS).partition(".")
            condition = names[int(number)]
            source = "" if condition in fresh else f"{_CONDITIONS}{names_before.index(condition)}.{rest}"
        if source in old:
            new[name] = old[source]
    if base.config.conditions != model.config.conditions:
        new[_POSITIONS] = _change_positions(old[_POSITIONS], base, model, fresh)
    return new


def _change_positions(rows: Tensor, base: CodecGPT, model: CodecGPT, fresh: list[str]) -> Tensor:
    """The table of positions [rows, D] with those of the prefix in their new order."""
    starts, start = {}, 0
    for condition in base.condition_list:
        starts[condition.name] = start
        start += condition.positions
    parts = []
    for condition in model.condition_list:
        first, size = starts.get(condition.name, 0), condition.positions
        known = rows[first : first + size]
        parts.append(torch.zeros_like(rows[:1]).expand(size, -1) if condition.name in fresh else known)
    return torch.cat([*parts, rows[start:]])


def _by_name(config: ModelConfig) -> dict[str, dict[str, object]]:
    """The settings of each condition by name, without its dropout, on which no weight depends."""
    return {each.name: {**each.to_dict(), "dropout": 0.0} for each in config.condition_settings}
