"""Output paths of generated sounds: checked before any work, and never over files that were not generated."""

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
    """Raises InputError unless sounds can be written to the setting `out`, a sound file or a folder."""
    if is_folder(out):
        check_output_folder("out", out)
        return
    suffix = Path(out).suffix
    try:
        soundfile.write(io.BytesIO(), np.zeros(1, np.float32), 44_100, format=suffix[1:].upper())
    except (ValueError, TypeError, RuntimeError):
        raise InputError(
            f"out={out}: '{suffix}' is not a supported format; give .wav, .flac, .ogg or .mp3, or for a folder add a "
            f"slash: out={out}/"
        ) from None
    check_output_file("out", out)


def is_folder(out: str) -> bool:
    """Whether the setting `out` means a folder: it is one, ends in a slash, or has no suffix.

    Digits are not a suffix, nor is what has a dash: `sounds-0.7` and `conditions.pitch-60` are folders.
    """
    suffix = Path(out).suffix[1:]
    return out.endswith("/") or not suffix or suffix.isdigit() or "-" in suffix or Path(out).is_dir()


def output_files(out: str, names: Sequence[str]) -> list[Path]:
    """The file of each sound.

    Args:
        out: The setting `out`. A file is used for a single sound, and gets numbers for several.
        names: One per sound; its file name in a folder, with a number if several sounds have the same name.
    """
    path = Path(out)
    if not is_folder(out):
        return [path] if len(names) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(names))]
    counts: dict[str, int] = {}
    files = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        number = f"-{counts[name]}" if names.count(name) > 1 else ""
        files.append(path / f"{name}{number}.wav")
    return files


def check_no_overwrite(sounds: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raises InputError if a sound or its sidecar would replace a source, or a file that was not generated."""
    source_paths = {source.resolve() for source in sources}
    for sound in sounds:
        sidecar = sound.with_suffix(".json")
        if conflicts := [file for file in (sound, sidecar) if file.resolve() in source_paths]:
            raise InputError(f"{conflicts[0]} is a source of the sound and would be replaced: give another out=")
        existing = [file for file in (sound, sidecar) if file.exists()]
        if existing and not _was_generated(sound, sidecar):
            raise InputError(
                f"{existing[0]} exists already, and was not written by pipeline.generate or was changed since: give "
                "another out="
            )


def _was_generated(sound: Path, sidecar: Path) -> bool:
    """Whether the sidecar is that of this sound, unchanged; the sound itself may be missing."""
    try:
        content = json.loads(sidecar.read_text())
        if content["sound"] != sound.name or not sound.exists():
            return bool(content["sound"] == sound.name)
        return bool(content["sound_sha256"] == sha256_file(sound))
    except (OSError, ValueError, KeyError, TypeError):
        return False
