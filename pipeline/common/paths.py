"""Where the files that belong to the program are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # of a clone; not part of a wheel
CONF = next(folder for folder in (PACKAGE / "conf", ROOT / "conf") if folder.is_dir())  # in a wheel, or in a clone
ASSETS = PACKAGE / "assets"  # weights that ship with the program
