"""Finds the audio files that a setting names."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline.common import sound_files
from pipeline.common.errors import InputError

log = logging.getLogger("pipeline")


def find_audio_files(setting: str, paths: Iterable[str | Path]) -> dict[str, Path]:
    """Return files, and all audio files below folders, by unique names: the stem, or stem-2, stem-3...

    Audio files of unsupported formats are included; reading them raises an error that explains how to convert them.

    Args:
        setting: The setting that `paths` come from, for error messages.
        paths: Files and folders.

    Raises:
        InputError: A path does not exist, or a folder contains no audio files.
    """
    files: list[Path] = []
    for path in map(Path, map(str, paths)):
        if path.is_dir():
            contents = _list_folder(path)
            if not contents:
                suffixes = ", ".join(sound_files.SUFFIXES)
                raise InputError(f"{setting}={path}: there are no audio files in the folder ({suffixes})")
            files += contents
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


def _list_folder(folder: Path) -> list[Path]:
    suffixes = sound_files.SUFFIXES + sound_files.UNSUPPORTED
    return [
        folder / name
        for name, _ in sound_files.walk(folder, suffixes, lambda path, reason: log.warning("%s: %s", path, reason))
    ]
