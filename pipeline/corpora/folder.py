"""A folder of audio files with subfolders, split by recording (or by subfolder) and cut into segments.

Duplicates are skipped; versions of a recording in several formats share a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.common import sound_files
from pipeline.common.setting_types import Fraction, Seconds
from pipeline.corpora import CORPORA
from pipeline.corpora.base import (
    KEY_LENGTH,
    AudioDigest,
    CorpusSettings,
    Durations,
    SkippedInput,
    TestShare,
    no_clips_error,
    printable,
    require_folder,
    slug,
)
from pipeline.corpora.clip import Clip
from pipeline.corpora.labels import LabelReader
from pipeline.corpora.scan_cache import cache_file, cached_map
from pipeline.corpora.segments import assign_split, cut_clip
from pipeline.corpora.sound_identity import find_duplicate_files, find_versions, follow


@CORPORA.register("folder")
class FolderSettings(CorpusSettings):
    """Settings of a folder of audio files; see conf/data/folder.yaml."""

    title: ClassVar[str] = "audio files of a local folder"
    licence: ClassVar[str] = "whose owner decides about their licence"
    location_settings: ClassVar[tuple[str, ...]] = ("labels",)
    label_settings: ClassVar[tuple[str, ...]] = (
        *("labels", "labels_file_column", "labels_list_columns", "labels_beside", "labels_from_folders"),
    )

    extensions: Literal["auto"] | list[str]
    segment_seconds: Seconds | None
    min_seconds: Seconds
    seed: int
    split_by: Literal["recording", "folder"]
    valid: Fraction
    test: TestShare
    labels: str | None
    labels_file_column: str | None
    labels_list_columns: list[str]
    labels_beside: bool
    labels_from_folders: list[str]

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> Folder:
        """Open the folder."""
        return Folder(self, digest, durations)


class Folder:
    """See `pipeline.corpora.base.Corpus`, and `CorpusSettings.open` for the arguments."""

    def __init__(self, settings: FolderSettings, digest: AudioDigest | None, durations: Durations | None) -> None:
        self._settings, self._digest, self._durations = settings, digest, durations
        self.skipped: list[SkippedInput] = []
        self._suffixes: tuple[str, ...] = sound_files.SUFFIXES
        self._unsupported: tuple[str, ...] = sound_files.UNSUPPORTED
        if settings.extensions != "auto":  # all other files are ignored
            self._suffixes, self._unsupported = tuple(f".{e.lower().lstrip('.')}" for e in settings.extensions), ()
        self._expected = f"audio files ({', '.join(self._suffixes)})"
        self._root = require_folder(settings.root, self._expected, settings.how_to_get)
        self._labels = LabelReader(settings, self._root)

    def clips(self) -> Iterator[Clip]:
        """Yield the clips, sorted by the parts of their paths."""
        settings = self._settings
        self.skipped.clear()
        duplicates = find_duplicate_files(self._root, self._files, self._cache_file, self._digest)
        groups = self._linked_groups(duplicates)
        is_empty = True
        for name, duration in self._recordings():
            is_empty = False
            labels, faults = self._labels.read(name)
            if name in duplicates:
                self._skip(name, f"duplicate: the same audio as {printable(duplicates[name])}")
                continue
            for fault in faults:
                self._skip(name, fault, is_used=True)
            group = self._group(name)
            split = assign_split(groups.get(group, group), settings.seed, settings.valid, settings.test)
            key = slug(name.rpartition(".")[0], of=name, length=KEY_LENGTH - 6)
            whole = Clip(key, f"{self._root}/{name}", split, 0.0, duration, labels)
            yield from cut_clip(whole, settings.segment_seconds, settings.min_seconds)
        if is_empty:
            raise no_clips_error(self._root, self._expected, self._conversion_hint() or settings.how_to_get)
        self.skipped += self._labels.unused()

    def _skip(self, name: str, reason: str, is_used: bool = False) -> None:
        self.skipped.append(SkippedInput(printable(f"{self._root}/{name}"), "", reason, is_used))

    def _conversion_hint(self) -> str:
        """Return how to convert the files of the folder if all of them have unsupported formats, else ""."""
        suffixes = Counter(Path(left.path).suffix.lower() for left in self.skipped)
        unsupported = {suffix: count for suffix, count in suffixes.most_common() if suffix in self._unsupported}
        if not unsupported:
            return ""
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in unsupported.items())
        suffix = next(iter(unsupported))
        return f"it contains {counts}, which are not supported: convert them: ffmpeg -i IN{suffix} OUT.flac"

    def _recordings(self) -> Iterator[tuple[str, float | None]]:
        """Yield the name below the root and the duration in seconds, None if it is unknown or not needed."""
        files = list_files(self._root, self._suffixes, self.skipped, self._unsupported)
        if self._settings.segment_seconds is None or self._durations is None:
            return ((name, None) for name, _ in files)
        rows = cached_map(self._cache_file(self._durations.kind), files, self._duration)
        return ((name, duration) for name, _, duration in rows)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield the name and stamp of every file again, without recording skipped inputs."""
        return list_files(self._root, self._suffixes, [])

    def _cache_file(self, kind: str) -> Path:
        return cache_file(Path(self._settings.scan_cache_dir), self._root, kind)

    def _duration(self, name: str) -> float | None:
        return self._durations(f"{self._root}/{name}") if self._durations else None

    def _group(self, name: str) -> str:
        """Return the group that must stay in one split: the recording, or its subfolder."""
        return name if self._settings.split_by == "recording" else name.rpartition("/")[0]

    def _linked_groups(self, duplicates: Mapping[str, str]) -> dict[str, str]:
        """Return {group: the group whose split it shares}, for groups with versions of the same recordings."""
        linked: dict[str, str] = {}

        def duration(name: str) -> float | None:
            with suppress(OSError):
                return self._duration(name)
            return None

        for names in find_versions(self._files, duration):
            groups = {follow(linked, self._group(duplicates.get(name, name))) for name in names}
            ours = sorted(groups, key=lambda group: group.split("/"))
            linked |= dict.fromkeys(ours[1:], ours[0])
        return {group: follow(linked, group) for group in linked}


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
