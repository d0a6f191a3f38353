"""Which files of a folder are sound files, for corpora and prompts: suffixes, and a recursive listing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

SUFFIXES = (
    ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".aif",
    ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph",
)  # fmt: skip
"""Suffixes of sound files that can be read. The format itself is detected from the content."""

UNSUPPORTED = (
    ".m4a", ".m4b", ".m4r", ".mp4", ".mov", ".3gp", ".aac", ".adts", ".wma", ".asf", ".webm", ".weba", ".mka", ".mkv",
    ".ape", ".wv", ".mpc", ".tta", ".tak", ".shn", ".ac3", ".eac3", ".dts", ".amr", ".awb", ".ra", ".rm", ".dsf",
    ".dff", ".spx", ".avi", ".flv",
)  # fmt: skip
"""Suffixes of sound files that cannot be read: they are reported as skipped."""

Skip = Callable[[str, str], None]  # receives a path and the reason why it is not listed


def unsupported(what: str, suffix: str = "") -> str:
    """The reason why a sound file of an unsupported format is skipped, and how to convert it."""
    return f"unsupported format: {what} is not read; convert it: ffmpeg -i IN{suffix} OUT.flac"


def is_sound_file(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file name ends in one of these suffixes, and is not hidden."""
    return name.lower().endswith(suffixes) and not name.startswith(".")


def walk(root: str | Path, suffixes: tuple[str, ...], skip: Skip) -> Iterator[tuple[str, os.stat_result]]:
    """(name below the root, status) of every file with one of these suffixes, sorted by the parts of the name.

    Hidden files and folders are passed over, and so are the `._` files of a Mac. A link is followed unless its target
    is listed anyway: so loops end, and no file comes twice. `skip` receives what cannot be listed.
    """
    home = Path(root).resolve()
    linked: set[tuple[int, int]] = set()

    def is_listed_elsewhere(entry: os.DirEntry[str]) -> bool:
        target = Path(entry.path).resolve()
        if target.is_relative_to(home) and not any(part.startswith(".") for part in target.relative_to(home).parts):
            return entry.is_dir() or target.name.lower().endswith(suffixes)
        status = entry.stat()
        if (status.st_dev, status.st_ino) in linked:
            return True
        linked.add((status.st_dev, status.st_ino))
        return False

    def entries(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skip(folder, f"a folder that cannot be read: {error.strerror}")
            return
        for entry in inside:
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_dir() and not is_sound_file(entry.name, suffixes):
                    continue
                if not entry.is_dir() and not entry.is_file():
                    skip(entry.path, "neither a file nor a link to one")
                elif entry.is_symlink() and is_listed_elsewhere(entry):
                    skip(entry.path, "a link to what is listed already")
                elif entry.is_dir():
                    yield from entries(entry.path, f"{prefix}{entry.name}/")
                else:
                    yield f"{prefix}{entry.name}", entry.stat()
            except (OSError, RuntimeError) as error:  # Path.resolve raises RuntimeError for a link to itself
                if isinstance(error, OSError) and error.errno != errno.ELOOP:
                    skip(entry.path, f"cannot be read: {error.strerror}")
                else:
                    skip(entry.path, f"a link that leads to itself: {error}")

    yield from entries(os.fspath(root), "")
