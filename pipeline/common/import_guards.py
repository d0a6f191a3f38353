"""Imports of packages that depend on torchaudio or torchvision, if these are missing or broken.

pip does not keep torch, torchaudio and torchvision consistent: a build for another version of torch or CUDA fails on
import. `encodec` imports torchaudio, and `transformers` imports both if they are installed, for functions that are not
used here.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def hide_broken_packages(*packages: str, stand_in: bool = False) -> Iterator[None]:
    """Inside the block, packages that cannot be imported count as not installed.

    Args:
        packages: Names of packages.
        stand_in: Whether `import` returns an empty module for them, for code that imports them in any case.
    """
    broken = [name for name in packages if not _importable(name)]
    for name in broken:
        sys.modules[name] = ModuleType(name) if stand_in else None  # type: ignore[assignment]  # None: not installed
    try:
        yield
    finally:
        for name in broken:
            del sys.modules[name]


@functools.cache
def _importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # not installed; or built for another torch: ImportError, OSError, RuntimeError or AttributeError
        return False
    return True
