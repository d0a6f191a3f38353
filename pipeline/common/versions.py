"""Versions of the packages that a result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from pipeline import __version__

OURS = "codec-audio-lm"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of installed packages, by name. This package's is known also in a clone that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            if name == OURS:
                versions[name] = __version__
    return versions
