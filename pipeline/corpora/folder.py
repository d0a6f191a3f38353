"""Any folder of sound files, subfolders too: split by recording (or by subfolder), cut into segments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from pipeline.corpora.clip import Clip
from pipeline.corpora.corpus import KEY_LENGTH, UNREADABLE, SetAside, empty, existing, shown, slug
from pipeline.corpora.cut import check, segments, split_of
from pipeline.corpora.listing import listing_file, remembered
from pipeline.errors import InputError

COMMAND = "give the folder as data.root=DIR"
DENSEST = 8192  # frames in a byte: FLAC and Opus hold silence in less, but no header that says more is true


@dataclass
class Folder:
    """See `pipeline.corpora.corpus.Corpus`. data: the settings of conf/data/folder.yaml."""

    data: Mapping[str, Any]
    name: str = "folder"
    set_aside: list[SetAside] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.endings = tuple(f".{ending.lower()}" for ending in self.data["extensions"])
        self.looked_for = f"sound files ({', '.join(self.endings)})"
        self.root = existing(self.data["root"], self.looked_for, COMMAND)
        check(self.data)
        if self.data["split_by"] not in ("recording", "folder"):
            raise InputError(f"data.split_by={self.data['split_by']} is neither recording nor folder")

    def clips(self) -> Iterator[Clip]:
        """Sorted by path, part by part."""
        self.set_aside.clear()
        found = False
        for name, duration in self._recordings():
            found = True
            group = name if self.data["split_by"] == "recording" else name.rpartition("/")[0]
            split = split_of(group, self.data)
            key = slug(name.rpartition(".")[0], of=name, length=KEY_LENGTH - 6)
            for number, (start, length) in enumerate(segments(duration, self.data)):
                part = key if self.data["segment_seconds"] is None else f"{key}-{number:05d}"
                yield Clip(part, f"{self.root}/{name}", split, start, length)
        if not found:
            raise empty(self.root, self.looked_for, COMMAND)

    def _recordings(self) -> Iterator[tuple[str, float | None]]:
        """Name below the root and duration in seconds; None where it does not matter or no header says it."""
        files = walk(self.root, self.endings, self.set_aside)
        if self.data["segment_seconds"] is None:
            return ((name, None) for name, _ in files)
        listing = listing_file(Path(self.data["listings"]), self.root, "durations")
        rows = remembered(listing, files, lambda name: seconds(f"{self.root}/{name}"))
        return ((name, duration) for name, _, duration in rows)


def walk(root: Path, endings: tuple[str, ...], set_aside: list[SetAside]) -> Iterator[tuple[str, str]]:
    """(name below the root, size and time of change) of every file with such an ending, sorted part by part.

    Hidden files and folders are passed over. A link is followed unless its target is listed anyway: so loops end, and
    no recording comes twice (or in two splits).
    """
    home = root.resolve()
    linked: set[tuple[int, int]] = set()

    def is_listed_elsewhere(entry: os.DirEntry[str]) -> bool:
        target = Path(entry.path).resolve()
        if target.is_relative_to(home) and not any(part.startswith(".") for part in target.relative_to(home).parts):
            return entry.is_dir() or target.name.lower().endswith(endings)
        seen = entry.stat()
        if (seen.st_dev, seen.st_ino) in linked:
            return True
        linked.add((seen.st_dev, seen.st_ino))
        return False

    def entries(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
        try:
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            set_aside.append(SetAside(shown(folder), "", f"a folder that {UNREADABLE}: {error.strerror}"))
            return
        for entry in inside:
            sounds = entry.name.lower().endswith(endings)
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_dir() and not sounds:
                    continue
                if not entry.is_dir() and not entry.is_file():
                    set_aside.append(SetAside(shown(entry.path), "", "neither a file nor a link to one"))
                elif entry.is_symlink() and is_listed_elsewhere(entry):
                    set_aside.append(SetAside(shown(entry.path), "", "a link to what is listed already"))
                elif entry.is_dir():
                    yield from entries(entry.path, f"{prefix}{entry.name}/")
                else:
                    seen = entry.stat()
                    yield f"{prefix}{entry.name}", f"{seen.st_size}-{seen.st_mtime_ns}"
            except (OSError, RuntimeError) as error:  # Path.resolve raises RuntimeError for a link to itself
                set_aside.append(SetAside(shown(entry.path), "", f"cannot be looked at: {error}"))

    yield from entries(os.fspath(root), "")


def seconds(path: str) -> float | None:
    """The duration that a sound file's header gives; None where it gives none: the decoder will say what is wrong.

    Raises OSError for a file that cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:  # noqa: PTH123
            fits = 0 < sound.frames <= os.fstat(handle.fileno()).st_size * DENSEST
            return (round(sound.frames / sound.samplerate, 6) or None) if fits else None
    except soundfile.LibsndfileError:
        return None
