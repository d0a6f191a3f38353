"""MTG-Jamendo (Bogdanov et al. 2019): 55,000 tracks as `00/565800.mp3`, in folders or in the published tars.

The split is by artist. Duplicates are skipped. Tracks are cut into segments.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.common.console import print_log
from pipeline.common.errors import InputError
from pipeline.corpora.base import (
    KEY_LENGTH,
    UNREADABLE,
    SkippedInput,
    no_clips_error,
    printable,
    reading,
    require_folder,
    slug,
)
from pipeline.corpora.clip import Clip
from pipeline.corpora.dedup import AudioDigest, Recording, find_duplicates
from pipeline.corpora.folder import list_files
from pipeline.corpora.scan_cache import cache_file, cached_scan
from pipeline.corpora.segments import assign_split, cut_segments, validate
from pipeline.corpora.tar_archive import MAX_MEMBER_BYTES, TruncatedArchive, iter_members, member_path

EXPECTED = "00/565800.mp3 ... 99/*.mp3 or raw_30s_audio-{00..99}.tar, and raw_30s.tsv"
HOW_TO_GET = "get it with `python -m pipeline.download data=jamendo`, or give the folder as data.root=DIR"
AUDIO_FOLDERS = ("", "audio", "audio-low", "raw_30s/audio", "raw_30s/audio-low")  # below data.root, in this order
METADATA_FILES = (
    "raw_30s.tsv",
    "autotagging.tsv",
    "raw.tsv",
    "data/raw_30s.tsv",
    "data/autotagging.tsv",
    "data/raw.tsv",
)
COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
LARGE_CORPUS = 10_000
MAX_TRACK_SECONDS = 360_000  # seconds; a row with more is an error, and would give a million segments
_ENDING = re.compile(r"(\.low)?\.mp3$", re.IGNORECASE)


class Track(NamedTuple):
    """A row of the metadata. seconds: the duration of the complete track."""

    id: str
    artist: str
    album: str
    path: str
    seconds: float
    tags: list[str]


@dataclass
class Jamendo:
    """See `pipeline.corpora.base.Corpus`. data: the settings of conf/data/jamendo.yaml; digest: see `open_corpus`."""

    data: Mapping[str, Any]
    digest: AudioDigest | None = None
    name: str = "jamendo"
    skipped: list[SkippedInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        validate(self.data)
        limit = self.data["segments_per_track"]
        if limit is not None and limit < 1:
            raise InputError(f"data.segments_per_track={limit}: expected 1 or more, or null for all")
        root = require_folder(self.data["root"], EXPECTED, HOW_TO_GET)
        self.scan_cache_dir = Path(self.data["scan_cache_dir"])
        with reading(root):
            self.audio = _locate(root, self.data["audio"], AUDIO_FOLDERS, _has_tracks, "audio")
            self.metadata = _locate(root, self.data["metadata"], METADATA_FILES, Path.is_file, "metadata")

    def clips(self) -> Iterator[Clip]:
        """Yield the clips sorted by name, folders before tars, the segments of a track in order."""
        self.skipped.clear()
        tracks = self._tracks()
        recordings = self._recordings(tracks)
        if not recordings:
            raise no_clips_error(self.audio, EXPECTED, HOW_TO_GET)
        if len(recordings) > LARGE_CORPUS and not cache_file(self.scan_cache_dir, self.audio, "probes").exists():
            cache = printable(self.scan_cache_dir)
            print_log(f"looking for duplicates among {len(recordings):,} tracks; the result is cached in {cache}")
        unreadable: dict[str, str] = {}
        cache_path = partial(cache_file, self.scan_cache_dir, self.audio)
        duplicates = find_duplicates(recordings, cache_path, self.digest, unreadable)
        for recording in recordings:
            track = tracks[_track_name(recording.name)]
            if recording.name in unreadable:
                self._skip(recording.path, track.id, f"{UNREADABLE}: {unreadable[recording.name]}")
            elif recording.name in duplicates:
                self._skip(
                    recording.path, track.id, f"duplicate: the same audio as {printable(duplicates[recording.name])}"
                )
            else:
                yield from self._segments(recording, track)

    def _segments(self, recording: Recording, track: Track) -> Iterator[Clip]:
        excerpt = self.data["excerpt_seconds"]
        cuts = list(
            enumerate(cut_segments(track.seconds if excerpt is None else min(track.seconds, excerpt), self.data))
        )
        limit = self.data["segments_per_track"]
        if limit is not None and limit < len(cuts):
            cuts = sorted(random.Random(f"{self.data['seed']}:{track.id}").sample(cuts, limit))
        split = assign_split(track.artist, self.data)
        labels = {"track": track.id, "artist": track.artist, "album": track.album, "tags": track.tags}
        key = slug(track.id, length=KEY_LENGTH - 6)
        for number, (start, length) in cuts:
            yield Clip(f"{key}-{number:05d}", recording.path, split, start, length, labels, recording.span)

    def _tracks(self) -> dict[str, Track]:
        """Return the rows of the metadata by their name (`00/565800`); skip those that cannot be used."""
        tracks: dict[str, Track] = {}
        ids: set[str] = set()
        with (
            reading(self.metadata),
            self.metadata.open(newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            try:
                if next(rows, [])[: len(COLUMNS)] != COLUMNS:
                    raise InputError(
                        f"{printable(self.metadata)} is not the metadata of MTG-Jamendo: expected the columns {COLUMNS}"
                    )
                for row in rows:
                    position = f"line {rows.line_num} of {self.metadata.name}"
                    if len(row) < 5:
                        self._skip("", row[0] if row else "", f"{position} has {len(row)} columns, expected 5 or more")
                    elif not _is_duration(row[4]):
                        self._skip(row[3], row[0], f"{position}: {row[4]!r} is not a duration in seconds")
                    elif row[0] in ids or _track_name(row[3]) in tracks:
                        self._skip(row[3], row[0], f"{position} repeats a track")
                    else:
                        ids.add(row[0])
                        tracks[_track_name(row[3])] = Track(row[0], row[1], row[2], row[3], float(row[4]), row[5:])
            except csv.Error as error:
                raise InputError(
                    f"{printable(self.metadata)}, line {rows.line_num}: {error}; download it again"
                ) from error
        return tracks

    def _recordings(self, tracks: dict[str, Track]) -> list[Recording]:
        """Return one file per track, sorted by the parts of their names; skip the others."""
        recordings: dict[str, Recording] = {}
        unusable: set[str] = set()
        for recording in self._files():
            title = _track_name(recording.name)
            if title not in tracks:
                self._skip(recording.path, "", f"on disk, not in {self.metadata.name}")
            elif title in recordings:
                self._skip(
                    recording.path, tracks[title].id, f"another file of the track: {printable(recordings[title].path)}"
                )
            elif recording.span and recording.size > MAX_MEMBER_BYTES:
                self._skip(recording.path, tracks[title].id, f"too large: {recording.size} bytes")
                unusable.add(title)
            elif recording.size == 0:
                self._skip(recording.path, tracks[title].id, "empty: the file has no bytes")
                unusable.add(title)
            else:
                recordings[title] = recording
        self._skip_missing(tracks, recordings.keys() | unusable)
        return sorted(recordings.values(), key=lambda recording: recording.name.split("/"))

    def _skip_missing(self, tracks: dict[str, Track], present: set[str]) -> None:
        """Skip the tracks without a file: one by one, or per folder if it is missing entirely (a partial download)."""
        of_folder = Counter(title.rpartition("/")[0] for title in tracks)
        absent = [title for title in tracks if title not in present]
        absent_of_folder = Counter(title.rpartition("/")[0] for title in absent)
        missing = {folder for folder, count in absent_of_folder.items() if count == of_folder[folder] > 1}
        for folder in sorted(missing):
            self._skip(f"{folder}/", "", f"none of its {of_folder[folder]} tracks is on disk")
        for title in absent:
            if title.rpartition("/")[0] not in missing:
                self._skip(tracks[title].path, tracks[title].id, f"in {self.metadata.name}, not on disk")

    def _files(self) -> Iterator[Recording]:
        """Yield the audio files in folders, then those in tars."""
        for name, stamp in list_files(self.audio, (".mp3",), self.skipped):
            yield Recording(name, stamp, int(stamp.partition("-")[0]), f"{self.audio}/{name}", None)
        for tar in sorted(self.audio.glob("*.tar")):
            with reading(tar):
                status = tar.stat()
            for name, offset, size, fault in cached_scan(self.scan_cache_dir, tar, partial(_scan_tar, tar)):
                if fault:
                    self._skip(str(tar), "", fault)
                    continue
                stamp = f"{status.st_size}-{status.st_mtime_ns}-{offset}-{size}"
                yield Recording(f"{tar.name}/{name}", stamp, size, member_path(tar, name), (offset, size))

    def _skip(self, path: str, key: str, reason: str) -> None:
        self.skipped.append(SkippedInput(printable(path), printable(key), reason))


def _scan_tar(tar: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, offset, size, "") of every track in a tar, and last ("", 0, 0, reason) if it is truncated."""
    try:
        for member, _ in iter_members(tar):
            hidden = PurePosixPath(member.name).name.startswith(".")
            if member.name.lower().endswith(".mp3") and not hidden:
                yield member.name, member.offset, member.size, ""
    except TruncatedArchive as error:
        yield "", 0, 0, f"truncated archive: {error}"


def _locate(
    root: Path, path: str | None, usual: tuple[str, ...], is_valid: Callable[[Path], bool], setting: str
) -> Path:
    """Return the path of a setting, or the first usual path below the root that is valid."""
    candidates = [Path(path)] if path is not None else [root / name for name in usual]
    for candidate in candidates:
        if is_valid(candidate):
            return candidate
    tried = ", ".join(map(printable, candidates))
    raise InputError(f"data.{setting} was not found at {tried}: expected {EXPECTED}; {HOW_TO_GET}")


def _has_tracks(folder: Path) -> bool:
    """Whether a folder contains folders named 00 to 99, or tars."""
    return folder.is_dir() and any(
        re.fullmatch(r"\d\d", path.name) or path.suffix == ".tar" for path in folder.iterdir()
    )


def _track_name(path: str) -> str:
    """Return the name that a row and its file share: folder and name without `.mp3` or `.low.mp3`."""
    return _ENDING.sub("", "/".join(PurePosixPath(path).parts[-2:]))


def _is_duration(text: str) -> bool:
    try:
        return 0 < float(text) <= MAX_TRACK_SECONDS
    except ValueError:
        return False
