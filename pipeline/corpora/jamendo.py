"""MTG-Jamendo (Bogdanov et al. 2019): 55,000 tracks as `00/565800.mp3`, in folders or in the published tars.

The split is by artist; each sound is used once, however many names it has; tracks are cut into segments.
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
AUDIO_FOLDERS = (
    "",
    "audio",
    "audio-low",
    "raw_30s/audio",
    "raw_30s/audio-low",
)  # below data.root: the first that has any
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
MAX_TRACK_SECONDS = 360_000  # seconds of a track: a row that says more is mistaken, and would be a million segments
_ENDING = re.compile(r"(\.low)?\.mp3$", re.IGNORECASE)


class Track(NamedTuple):
    """A row of the metadata. seconds: of the whole track."""

    id: str
    artist: str
    album: str
    path: str
    seconds: float
    tags: list[str]


@dataclass
class Jamendo:
    """See `pipeline.corpora.base.Corpus`. data: the settings of conf/data/jamendo.yaml; digest: see `duplicates`."""

    data: Mapping[str, Any]
    digest: AudioDigest | None = None
    name: str = "jamendo"
    skipped: list[SkippedInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        validate(self.data)
        most = self.data["segments_per_track"]
        if most is not None and most < 1:
            raise InputError(f"data.segments_per_track={most}: expected 1 or more, or null for all")
        root = require_folder(self.data["root"], EXPECTED, HOW_TO_GET)
        self.scan_cache_dir = Path(self.data["scan_cache_dir"])
        with reading(root):
            self.audio = _locate(root, self.data["audio"], AUDIO_FOLDERS, _has_tracks, "audio")
            self.metadata = _locate(root, self.data["metadata"], METADATA_FILES, Path.is_file, "metadata")

    def clips(self) -> Iterator[Clip]:
        """Sorted by name, folders before tars, segments of a track in a row."""
        self.skipped.clear()
        tracks = self._tracks()
        recordings = self._recordings(tracks)
        if not recordings:
            raise no_clips_error(self.audio, EXPECTED, HOW_TO_GET)
        if len(recordings) > LARGE_CORPUS and not cache_file(self.scan_cache_dir, self.audio, "probes").exists():
            cache = printable(self.scan_cache_dir)
            print_log(f"looking for duplicates among {len(recordings):,} tracks; the result is cached in {cache}")
        unreadable: dict[str, str] = {}
        listing = partial(cache_file, self.scan_cache_dir, self.audio)
        copies = find_duplicates(recordings, listing, self.digest, unreadable)
        for recording in recordings:
            track = tracks[_track_name(recording.name)]
            if recording.name in unreadable:
                self._skip(recording.path, track.id, f"{UNREADABLE}: {unreadable[recording.name]}")
            elif recording.name in copies:
                self._skip(recording.path, track.id, f"copy: the same sound as {printable(copies[recording.name])}")
            else:
                yield from self._segments(recording, track)

    def _segments(self, recording: Recording, track: Track) -> Iterator[Clip]:
        excerpt = self.data["excerpt_seconds"]
        cuts = list(
            enumerate(cut_segments(track.seconds if excerpt is None else min(track.seconds, excerpt), self.data))
        )
        most = self.data["segments_per_track"]
        if most is not None and most < len(cuts):
            cuts = sorted(random.Random(f"{self.data['seed']}:{track.id}").sample(cuts, most))
        split = assign_split(track.artist, self.data)
        labels = {"track": track.id, "artist": track.artist, "album": track.album, "tags": track.tags}
        key = slug(track.id, length=KEY_LENGTH - 6)
        for number, (start, length) in cuts:
            yield Clip(f"{key}-{number:05d}", recording.path, split, start, length, labels, recording.span)

    def _tracks(self) -> dict[str, Track]:
        """The rows of the metadata by their title (`00/565800`); those that cannot be used are set aside."""
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
                        f"{printable(self.metadata)} is no metadata of MTG-Jamendo: expected columns {COLUMNS}"
                    )
                for row in rows:
                    where = f"line {rows.line_num} of {self.metadata.name}"
                    if len(row) < 5:
                        self._skip("", row[0] if row else "", f"{where} has {len(row)} columns, not 5 or more")
                    elif not _is_duration(row[4]):
                        self._skip(row[3], row[0], f"{where} says {row[4]!r}, no duration in seconds")
                    elif row[0] in ids or _track_name(row[3]) in tracks:
                        self._skip(row[3], row[0], f"{where} repeats a track")
                    else:
                        ids.add(row[0])
                        tracks[_track_name(row[3])] = Track(row[0], row[1], row[2], row[3], float(row[4]), row[5:])
            except csv.Error as error:
                raise InputError(f"{printable(self.metadata)}, line {rows.line_num}: {error}; fetch it anew") from error
        return tracks

    def _recordings(self, tracks: dict[str, Track]) -> list[Recording]:
        """One file for each track, sorted by the parts of their names; what does not pair up is set aside."""
        found: dict[str, Recording] = {}
        empties: set[str] = set()
        for recording in self._files():
            title = _track_name(recording.name)
            if title not in tracks:
                self._skip(recording.path, "", f"on disk, not in {self.metadata.name}")
            elif title in found:
                self._skip(
                    recording.path, tracks[title].id, f"another file of the track: {printable(found[title].path)}"
                )
            elif recording.span and recording.size > MAX_MEMBER_BYTES:
                self._skip(recording.path, tracks[title].id, f"too large: {recording.size} bytes")
                empties.add(title)
            elif recording.size == 0:
                self._skip(recording.path, tracks[title].id, "empty: the file has no bytes")
                empties.add(title)
            else:
                found[title] = recording
        self._skip_missing(tracks, found.keys() | empties)
        return sorted(found.values(), key=lambda recording: recording.name.split("/"))

    def _skip_missing(self, tracks: dict[str, Track], present: set[str]) -> None:
        """Rows without a file: one by one, but once for a folder of which nothing is there (a partial download)."""
        of_folder = Counter(title.rpartition("/")[0] for title in tracks)
        absent = [title for title in tracks if title not in present]
        absent_of_folder = Counter(title.rpartition("/")[0] for title in absent)
        whole = {folder for folder, count in absent_of_folder.items() if count == of_folder[folder] > 1}
        for folder in sorted(whole):
            self._skip(f"{folder}/", "", f"none of its {of_folder[folder]} tracks is on disk")
        for title in absent:
            if title.rpartition("/")[0] not in whole:
                self._skip(tracks[title].path, tracks[title].id, f"in {self.metadata.name}, not on disk")

    def _files(self) -> Iterator[Recording]:
        for name, stamp in list_files(self.audio, (".mp3",), self.skipped):
            yield Recording(name, stamp, int(stamp.partition("-")[0]), f"{self.audio}/{name}", None)
        for tar in sorted(self.audio.glob("*.tar")):
            with reading(tar):
                seen = tar.stat()
            for name, offset, size, torn in cached_scan(self.scan_cache_dir, tar, partial(_scan_tar, tar)):
                if torn:
                    self._skip(str(tar), "", torn)
                    continue
                stamp = f"{seen.st_size}-{seen.st_mtime_ns}-{offset}-{size}"
                yield Recording(f"{tar.name}/{name}", stamp, size, member_path(tar, name), (offset, size))

    def _skip(self, path: str, key: str, reason: str) -> None:
        self.skipped.append(SkippedInput(printable(path), printable(key), reason))


def _scan_tar(tar: Path) -> Iterator[tuple[str, int, int, str]]:
    """(name, offset, size, "") of every track in a tar, and last ("", 0, 0, reason) where it is torn."""
    try:
        for member, _ in iter_members(tar):
            hidden = PurePosixPath(member.name).name.startswith(".")
            if member.name.lower().endswith(".mp3") and not hidden:
                yield member.name, member.offset, member.size, ""
    except TruncatedArchive as error:
        yield "", 0, 0, f"archive torn: {error}"


def _locate(root: Path, given: str | None, places: tuple[str, ...], fits: Callable[[Path], bool], setting: str) -> Path:
    """The path that a setting gives, or the first of the usual places below the root that fits."""
    paths = [Path(given)] if given is not None else [root / place for place in places]
    for path in paths:
        if fits(path):
            return path
    looked = ", ".join(printable(path) for path in paths)
    raise InputError(f"data.{setting} was not found at {looked}: expected {EXPECTED}; {HOW_TO_GET}")


def _has_tracks(folder: Path) -> bool:
    """Whether a folder holds folders named 00 to 99, or tars."""
    return folder.is_dir() and any(
        re.fullmatch(r"\d\d", path.name) or path.suffix == ".tar" for path in folder.iterdir()
    )


def _track_name(path: str) -> str:
    """What a row and its file share: folder and name, without `.mp3` or `.low.mp3`."""
    return _ENDING.sub("", "/".join(PurePosixPath(path).parts[-2:]))


def _is_duration(text: str) -> bool:
    try:
        return 0 < float(text) <= MAX_TRACK_SECONDS
    except ValueError:
        return False
