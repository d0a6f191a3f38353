"""Allowed types of settings: the type of the default in conf/, and those of EXTRA_TYPES where it is not enough.

A value of another type is converted where the meaning is certain (prompt=2024 is a file name, temperatures=0.7 is a
list of one number); otherwise it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.common.errors import InputError

# The types that a setting allows besides that of its default, by an example; `command:setting` where commands differ.
EXTRA_TYPES: dict[str, Any] = {
    # numbers that may have a fraction
    "trainer.ema": 0.5, "trainer.label_smoothing": 0.5, "trainer.compute_budget_pflop": 0.5, "timeout": 0.5,
    "data.cache_gib": 0.5, "window": 0.5, "window_stride": 0.5,
    # whole numbers, where the default is a text
    "batch": 1, "workers": 1, "encoder_workers": 1, "decode_workers": 1, "model.positions": 1,
    # texts, where the default is null
    "generate:run": "a", "generate:audio": "a", "generate:from": "a", "report:shards": "a", "corpus_root": "a",
    "codec_weights": "a", "embedder_weights": "a", "device": "a", "trainer.preflight": "a", "push": "a", "split": "a",
    # lists
    "generate:prompt": ["a"], "prompts": ["a"], "runs": ["a"],
    "sampling.temperature": [0.5], "data.programs": [1], "data.pitches": [1],
    "data.extensions": ["a"],
    # others
    "train:shards": {}, "pitch": True, "data.clips": None, "data.peak": None, "data.segment_seconds": None,
}  # fmt: skip
_SECONDS = "seconds"  # a setting whose name ends in it is a number
_NO_MATCH = object()
_DESCRIPTIONS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "{NAME: VALUE, ...}",
}


def allowed_types(command: str, name: str, defaults: Sequence[Any]) -> list[Any]:
    """Examples of all types that a setting allows.

    Args:
        command: The command.
        name: The dotted name of the setting.
        defaults: Its default values.

    Returns:
        One example per type; an empty list where any type is allowed.
    """
    extra = [EXTRA_TYPES[key] for key in (name, f"{command}:{name}") if key in EXTRA_TYPES]
    extra += [0.5] if name.endswith(_SECONDS) else []
    if not extra and all(_is_untyped(default) for default in defaults):
        return []
    if extra and all(default == "???" for default in defaults):
        return extra
    return [*defaults, *extra]


def coerce(setting: str, typed: str, value: Any, examples: Sequence[Any]) -> Any:
    """The value of a setting, converted to one of its allowed types.

    Args:
        setting: The dotted name of the setting.
        typed: The value as it was typed on the command line.
        value: The value as Hydra parsed it.
        examples: Examples of the allowed types.

    Raises:
        InputError: The value cannot be converted, or is not finite; the message says what is expected.
    """
    if not examples:
        _require_finite(setting, value)
        return value
    for match in (_match, _convert):
        for example in examples:
            coerced = match(example, value, typed)
            if coerced is not _NO_MATCH:
                _require_finite(setting, coerced)
                return coerced
    expected = dict.fromkeys(map(_describe_type, examples))
    if "a number" in expected:
        expected.pop("a whole number", None)
    raise InputError(f"{setting}={typed}: expected {' or '.join(expected)}")


def _is_untyped(default: Any) -> bool:
    """Whether a default does not show the type of its setting."""
    return default is None or default == "auto"


def _describe_type(example: Any) -> str:
    if _is_untyped(example):
        return "auto" if example else "null"
    if isinstance(example, list) and example:
        return f"a list of {_describe_type(example[0]).removeprefix('a ')}s, [A,B,...]"
    return _DESCRIPTIONS[type(example)]


def _match(example: Any, value: Any, typed: str) -> Any:
    """The value if it has the type of the example."""
    if _is_untyped(example):
        return value if value == example else _NO_MATCH
    if isinstance(example, bool) or isinstance(value, bool):
        return value if type(value) is type(example) else _NO_MATCH
    if isinstance(example, float):
        return value if isinstance(value, (int, float)) else _NO_MATCH
    if isinstance(example, list):
        return _coerce_items(example, value) if isinstance(value, list) else _NO_MATCH
    return value if type(value) is type(example) and value != "" else _NO_MATCH


def _convert(example: Any, value: Any, typed: str) -> Any:
    """The value converted to the type of the example, where its meaning is certain."""
    if _is_untyped(example) or value is None or isinstance(value, (list, dict)):
        return _NO_MATCH
    if isinstance(example, str):
        return typed or _NO_MATCH
    if isinstance(example, list):
        item = _match(example[0], value, typed) if example else _NO_MATCH
        return [item] if item is not _NO_MATCH else _coerce_items(example, [value], typed)
    if type(example) is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5
    return _NO_MATCH


def _coerce_items(example: list[Any], values: list[Any], typed: str | None = None) -> Any:
    """The items of a list, each converted to the type of the example's first item."""
    if not example:
        return values
    items = []
    for value in values:
        text = str(value) if typed is None else typed
        matched = _match(example[0], value, text)
        items.append(_convert(example[0], value, text) if matched is _NO_MATCH else matched)
    return items if items and not any(item is _NO_MATCH for item in items) else _NO_MATCH


def _require_finite(setting: str, value: Any) -> None:
    """Raises InputError for a number, or a number in a list, that is not finite."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise InputError(f"{setting}={item}: expected a finite number")
