"""The sound files that a setting names."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline.common import sound_files
from pipeline.common.errors import InputError

log = logging.getLogger("pipeline")


def find_audio_files(setting: str, given: Iterable[str | Path]) -> dict[str, Path]:
    """Files, and every sound file below folders, each by a name that no other has: its stem, or stem-2, stem-3...

    Sound files of formats that are not supported are among them: reading them says how to convert them.
    Raises InputError for what is not there, and for a folder without sound files.
    """
    files: list[Path] = []
    for path in map(Path, map(str, given)):
        if path.is_dir():
            found = _in_folder(path)
            if not found:
                raise InputError(
                    f"{setting}={path}: the folder holds no sound file ({', '.join(sound_files.SUFFIXES)})"
                )
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


def _in_folder(folder: Path) -> list[Path]:
    suffixes = sound_files.SUFFIXES + sound_files.UNSUPPORTED
    return [
        folder / name
        for name, _ in sound_files.walk(folder, suffixes, lambda path, reason: log.warning("%s: %s", path, reason))
    ]
