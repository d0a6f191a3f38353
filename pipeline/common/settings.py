"""Settings as they are typed on a command line, and checks of their range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.common.errors import InputError


def hydra_quote(text: str) -> str:
    """A text in Hydra's quotes, in which a backslash is special only before a quote."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def format_override(setting: str, value: Any) -> str:
    """A setting as it is typed for Hydra, `name=value`; quoting for the shell is up to the caller."""
    text = str(value)
    is_plain = re.fullmatch(r"[\w./:@-]+", text, re.ASCII)
    return f"{setting}={text if is_plain else hydra_quote(text)}"


def require_min(low: float, settings: Mapping[str, Any], *names: str) -> None:
    """Raises InputError for the first of these settings that is below `low`, or is a list with such an item.

    Values that are no numbers, such as auto and null, are accepted.
    """
    for name in names:
        value = settings[name]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (int, float)) and item < low for item in items):
            raise InputError(f"{name}={value}: give {low:g} or more")


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names: `optim.lr`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= flatten_settings(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
