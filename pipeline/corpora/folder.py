"""A folder of audio files with subfolders, split by recording (or by subfolder) and cut into segments.

Duplicates are skipped; versions of a recording in several formats share a split.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from pipeline.common import sound_files
from pipeline.common.errors import InputError
from pipeline.corpora.base import KEY_LENGTH, Durations, SkippedInput, no_clips_error, printable, require_folder, slug
from pipeline.corpora.clip import Clip
from pipeline.corpora.dedup import AudioDigest
from pipeline.corpora.scan_cache import cache_file, cached_map
from pipeline.corpora.segments import assign_split, cut_segments, validate
from pipeline.corpora.sound_identity import find_duplicate_files, find_versions

HOW_TO_GET = "give the folder as data.root=DIR"
MAX_FRAMES_PER_BYTE = 8192  # a header that declares more is wrong; even silence in FLAC or Opus has fewer


@dataclass
class Folder:
    """See `pipeline.corpora.base.Corpus`. data: the settings of conf/data/folder.yaml; others: see `open_corpus`."""

    data: Mapping[str, Any]
    digest: AudioDigest | None = None
    durations: Durations | None = None
    name: str = "folder"
    skipped: list[SkippedInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        auto = self.data["extensions"] == "auto"
        self.suffixes = (
            sound_files.SUFFIXES if auto else tuple(f".{e.lower().lstrip('.')}" for e in self.data["extensions"])
        )
        self.unsupported = sound_files.UNSUPPORTED if auto else ()  # named extensions ignore all other files
        self.expected = f"audio files ({', '.join(self.suffixes)})"
        self.root = require_folder(self.data["root"], self.expected, HOW_TO_GET)
        validate(self.data)
        if self.data["split_by"] not in ("recording", "folder"):
            raise InputError(f"data.split_by={self.data['split_by']}: expected recording or folder")

    def clips(self) -> Iterator[Clip]:
        """Yield the clips, sorted by the parts of their paths."""
        self.skipped.clear()
        duplicates = find_duplicate_files(self.root, self._files, self._cache_file, self.digest)
        groups = self._linked_groups(duplicates)
        is_empty = True
        for name, duration in self._recordings():
            is_empty = False
            if name in duplicates:
                reason = f"duplicate: the same audio as {printable(duplicates[name])}"
                self.skipped.append(SkippedInput(printable(f"{self.root}/{name}"), "", reason))
                continue
            group = self._group(name)
            split = assign_split(groups.get(group, group), self.data)
            key = slug(name.rpartition(".")[0], of=name, length=KEY_LENGTH - 6)
            for number, (start, length) in enumerate(cut_segments(duration, self.data)):
                part = key if self.data["segment_seconds"] is None else f"{key}-{number:05d}"
                yield Clip(part, f"{self.root}/{name}", split, start, length)
        if is_empty:
            raise no_clips_error(self.root, self.expected, self._conversion_hint() or HOW_TO_GET)

    def _conversion_hint(self) -> str:
        """Return how to convert the files of the folder if all of them have unsupported formats, else ""."""
        suffixes = Counter(Path(left.path).suffix.lower() for left in self.skipped)
        unsupported = {suffix: count for suffix, count in suffixes.most_common() if suffix in self.unsupported}
        if not unsupported:
            return ""
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in unsupported.items())
        suffix = next(iter(unsupported))
        return f"it contains {counts}, which are not supported: convert them: ffmpeg -i IN{suffix} OUT.flac"

    def _recordings(self) -> Iterator[tuple[str, float | None]]:
        """Yield the name below the root and the duration in seconds, None if it is unknown or not needed."""
        files = list_files(self.root, self.suffixes, self.skipped, self.unsupported)
        if self.data["segment_seconds"] is None:
            return ((name, None) for name, _ in files)
        kind = self.durations.kind if self.durations else "durations"
        rows = cached_map(self._cache_file(kind), files, self._duration)
        return ((name, duration) for name, _, duration in rows)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield the name and stamp of every file again, without recording skipped inputs."""
        return list_files(self.root, self.suffixes, [])

    def _cache_file(self, kind: str) -> Path:
        return cache_file(Path(self.data["scan_cache_dir"]), self.root, kind)

    def _duration(self, name: str) -> float | None:
        return (self.durations or header_duration)(f"{self.root}/{name}")

    def _group(self, name: str) -> str:
        """Return the group that must stay in one split: the recording, or its subfolder."""
        return name if self.data["split_by"] == "recording" else name.rpartition("/")[0]

    def _linked_groups(self, duplicates: Mapping[str, str]) -> dict[str, str]:
        """Return {group: the group whose split it shares}, for groups with versions of the same recordings."""
        linked: dict[str, str] = {}

        def first(group: str) -> str:
            while group in linked:
                group = linked[group]
            return group

        def duration(name: str) -> float | None:
            with suppress(OSError):
                return self._duration(name)
            return None

        for names in find_versions(self._files, duration):
            ours = sorted(
                {first(self._group(duplicates.get(name, name))) for name in names}, key=lambda group: group.split("/")
            )
            linked |= dict.fromkeys(ours[1:], ours[0])
        return {group: first(group) for group in linked}


def list_files(
    root: Path, suffixes: tuple[str, ...], skipped: list[SkippedInput], unsupported: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (name below the root, size and modification time) of every file with one of the suffixes.

    Args:
        root: The folder; see `sound_files.walk`.
        suffixes: The suffixes to list.
        skipped: Receives what cannot be listed, and the files with a suffix in `unsupported`.
        unsupported: Suffixes of files to report as skipped.
    """

    def skip(path: str, reason: str) -> None:
        skipped.append(SkippedInput(printable(path), "", reason))

    for name, status in sound_files.walk(root, suffixes + unsupported, skip):
        if name.lower().endswith(suffixes):
            yield name, f"{status.st_size}-{status.st_mtime_ns}"
        else:
            suffix = Path(name).suffix.lower()
            skip(f"{root}/{name}", sound_files.unsupported(suffix, suffix))


def header_duration(path: str) -> float | None:
    """Return the duration in seconds that a file's header declares; None if it declares none.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:  # noqa: PTH123
            fits = 0 < sound.frames <= os.fstat(handle.fileno()).st_size * MAX_FRAMES_PER_BYTE
            return (round(sound.frames / sound.samplerate, 6) or None) if fits else None
    except soundfile.LibsndfileError:
        return None
