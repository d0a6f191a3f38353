"""Versions of the packages that a result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from pipeline import __version__

THIS_PACKAGE = "codec-audio-lm"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed package, by name; that of this package also in a clone without installation.

    Packages that are not installed are left out.
    """
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            if name == THIS_PACKAGE:
                versions[name] = __version__
    return versions
