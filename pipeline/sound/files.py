"""The sound files that a setting names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"}


def find(setting: str, given: Iterable[str | Path]) -> dict[str, Path]:
    """Files, and every sound file below folders, each by a name that no other has: its stem, or stem-2, stem-3...

    Raises InputError for what is not there, and for a folder without sound files.
    """
    files: list[Path] = []
    for path in map(Path, map(str, given)):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise InputError(f"{setting}={path}: the folder holds no sound file ({', '.join(sorted(SUFFIXES))})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{setting}={path}: there is no such file or folder")
    names: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        name, number = file.stem, 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}"
        names[name] = file
    return names
