"""Where a command writes: looked at before any work is done for it, and never over what is somebody else's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipeline.common.errors import InputError
from pipeline.common.files import check_output_file, check_output_folder, sha256_file


def check_output(out: str) -> None:
    """Raises InputError unless sounds can be written to the setting `out`: a sound file, or a folder."""
    if is_folder(out):
        check_output_folder("out", out)
        return
    suffix = Path(out).suffix
    try:
        soundfile.write(io.BytesIO(), np.zeros(1, np.float32), 24_000, format=suffix[1:].upper())
    except (ValueError, TypeError, RuntimeError):
        raise InputError(
            f"out={out}: '{suffix}' names no format that can be written; give .wav, .flac, .ogg or .mp3, or a slash "
            f"behind it for a folder: out={out}/"
        ) from None
    check_output_file("out", out)


def is_folder(out: str) -> bool:
    """Whether the setting `out` means a folder: it is one, ends in a slash, or has no suffix (heard-0.7 has none)."""
    suffix = Path(out).suffix[1:]
    return out.endswith("/") or not suffix or suffix.isdigit() or Path(out).is_dir()


def output_files(out: str, names: Sequence[str]) -> list[Path]:
    """A file for each piece: `out` itself for one, else numbered, or named by prompts in a folder."""
    path = Path(out)
    if not is_folder(out):
        return [path] if len(names) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(names))]
    taken: dict[str, int] = {}
    found = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        count = f"-{taken[name]}" if names.count(name) > 1 else ""
        found.append(path / f"{name}{count}.wav")
    return found


def check_no_overwrite(sounds: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raises InputError where a sound, or the .json beside it, would replace a source or what others have written."""
    held = {source.resolve() for source in sources}
    for sound in sounds:
        told = sound.with_suffix(".json")
        if hit := [file for file in (sound, told) if file.resolve() in held]:
            raise InputError(f"{hit[0]} would be replaced, which the sound is made from: give another out=")
        there = [file for file in (sound, told) if file.exists()]
        if there and not _ours(sound, told):
            raise InputError(f"{there[0]} is there already, and not as pipeline.generate wrote it: give another out=")


def _ours(sound: Path, told: Path) -> bool:
    """Whether the sidecar tells of this very sound, which may be gone."""
    try:
        found = json.loads(told.read_text())
        if found["sound"] != sound.name or not sound.exists():
            return bool(found["sound"] == sound.name)
        return bool(found["sound_sha256"] == sha256_file(sound))
    except (OSError, ValueError, KeyError, TypeError):
        return False
