"""Messages about unknown and missing names, with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def suggest(near: str | None) -> str:
    """`did you mean 'NEAR'? `, or nothing."""
    return f"did you mean '{near}'? " if near else ""


def unknown_setting(setting: str, known: Iterable[str], hint: str = "") -> str:
    """The message about a setting that does not exist: with `hint`, or with the nearest of the known settings."""
    near = None if hint else nearest(setting, known)
    hint = f"; did you mean '{near}'?" if near else hint
    return f"there is no setting '{setting}'{hint} (--help lists them)"


def unknown_choice(setting: str, choice: str, known: Iterable[str], kind: str = "choice") -> str:
    """The message about a choice that a setting does not have, with the nearest one and all of them."""
    names = sorted(known)
    suggestion = suggest(nearest(choice, names))
    return f"{setting}={choice}: there is no such {kind}; {suggestion}choices are {', '.join(names)}"


def missing_setting(setting: str) -> str:
    """The message about a setting that has neither a default nor a value."""
    return f"the setting '{setting}' has no default: give {setting}=..."
