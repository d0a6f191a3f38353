"""What kind of value a setting takes: of its default in conf/, and of the examples below where that tells too little.

A word of the command line that is of another kind becomes one that is meant (prompt=2024 names a file, temperatures=0.7
is a list of one), or is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.common.errors import InputError

# What a setting takes besides its default, by an example; `command:setting` where commands differ.
EXTRA_TYPES: dict[str, Any] = {
    # numbers that need not be whole
    "trainer.ema": 0.5, "trainer.label_smoothing": 0.5, "trainer.compute_budget_pflop": 0.5, "timeout": 0.5,
    "data.cache_gib": 0.5, "limits.upload_mb": 0.5, "keep": 0.5, "window": 0.5, "window_stride": 0.5,
    "limits.storage_mb": 0.5, "limits.visitor_mb": 0.5,
    # whole numbers, where the default is a word
    "batch": 1, "workers": 1, "encoder_workers": 1, "decode_workers": 1, "model.positions": 1,
    # texts, where the default is none
    "generate:run": "a", "generate:audio": "a", "generate:from": "a", "report:shards": "a", "corpus_root": "a",
    "codec_weights": "a", "embedder_weights": "a", "device": "a", "trainer.preflight": "a", "push": "a", "split": "a",
    # lists
    "generate:prompt": ["a"], "prompts": ["a"], "examples": ["a"], "demo:run": ["a"], "runs": ["a"],
    "allowed_hosts": ["a"], "proxies": ["a"],
    "reconstruct:audio": ["a"], "sampling.temperature": [0.5], "data.programs": [1], "data.pitches": [1],
    "data.extensions": ["a"],
    # others
    "train:shards": {}, "pitch": True, "data.clips": None, "data.peak": None, "data.segment_seconds": None,
}  # fmt: skip
SECONDS = "seconds"  # what ends so is a number


def allowed_types(command: str, name: str, defaults: Sequence[Any]) -> list[Any]:
    """Values of all kinds that a setting of a command takes; none where it cannot be told."""
    also = [EXTRA_TYPES[key] for key in (name, f"{command}:{name}") if key in EXTRA_TYPES]
    also += [0.5] if name.endswith(SECONDS) else []
    if not also and all(_is_untyped(default) for default in defaults):
        return []
    if also and all(default == "???" for default in defaults):
        return also
    return [*defaults, *also]


def coerce(setting: str, typed: str, value: Any, examples: Sequence[Any]) -> Any:
    """A value as the setting takes it. typed: as it stands on the command line.

    Raises InputError, with what is expected, for a value of no kind that fits.
    """
    if not examples:
        _require_finite(setting, value)
        return value
    for change in (_exact, _converted):
        for example in examples:
            found = change(example, value, typed)
            if found is not _NO:
                _require_finite(setting, found)
                return found
    wanted = dict.fromkeys(map(_describe_type, examples))
    if "a number" in wanted:
        wanted.pop("a whole number", None)
    raise InputError(f"{setting}={typed}: expected {' or '.join(wanted)}")


_NO = object()  # it does not fit
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "{NAME: VALUE, ...}",
}


def _is_untyped(default: Any) -> bool:
    """Whether a default tells no kind."""
    return default is None or default == "auto"


def _describe_type(example: Any) -> str:
    if _is_untyped(example):
        return "auto" if example else "null"
    if isinstance(example, list) and example:
        return f"a list of {_describe_type(example[0]).removeprefix('a ')}s, [A,B,...]"
    return _WORDS[type(example)]


def _exact(example: Any, value: Any, typed: str) -> Any:
    """The value where it is of the example's kind."""
    if _is_untyped(example):
        return value if value == example else _NO
    if isinstance(example, bool) or isinstance(value, bool):
        return value if type(value) is type(example) else _NO
    if isinstance(example, float):
        return value if isinstance(value, (int, float)) else _NO
    if isinstance(example, list):
        return _each_item(example, value) if isinstance(value, list) else _NO
    return value if type(value) is type(example) and value != "" else _NO


def _converted(example: Any, value: Any, typed: str) -> Any:
    """The value made what the example is, where that is surely meant."""
    if _is_untyped(example) or value is None or isinstance(value, (list, dict)):
        return _NO
    if isinstance(example, str):
        return typed or _NO
    if isinstance(example, list):
        one = _exact(example[0], value, typed) if example else _NO
        return [one] if one is not _NO else _each_item(example, [value], typed)
    if type(example) is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5
    return _NO


def _each_item(example: list[Any], values: list[Any], typed: str | None = None) -> Any:
    if not example:
        return values
    found = []
    for value in values:
        word = str(value) if typed is None else typed
        fits = _exact(example[0], value, word)
        found.append(_converted(example[0], value, word) if fits is _NO else fits)
    return found if found and not any(one is _NO for one in found) else _NO


def _require_finite(setting: str, value: Any) -> None:
    """Raises InputError for a number that is none."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise InputError(f"{setting}={one}: expected a finite number")
