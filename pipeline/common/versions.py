"""Versions of the packages that a result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from pipeline import __version__

OURS = "codec-audio-lm"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each package that can be found; ours is known also where it runs from a clone, not installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name == OURS:
                found[name] = __version__
    return found
