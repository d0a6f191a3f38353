"""MTG-Jamendo (Bogdanov et al. 2019): 55,000 tracks as `00/565800.mp3`, in folders or in the published tars.

The split is by artist. Duplicates are skipped. Tracks are cut into segments.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pipeline.common.console import print_log
from pipeline.common.errors import InputError
from pipeline.common.setting_types import Fraction, PositiveInt, Seconds
from pipeline.corpora import CORPORA
from pipeline.corpora.base import (
    KEY_LENGTH,
    UNREADABLE,
    AudioDigest,
    CorpusSettings,
    Durations,
    RemoteFile,
    SkippedInput,
    TestShare,
    no_clips_error,
    printable,
    reading,
    require_folder,
    slug,
)
from pipeline.corpora.clip import Clip
from pipeline.corpora.dedup import Recording, find_duplicates
from pipeline.corpora.folder import list_files
from pipeline.corpora.scan_cache import cache_file, cached_scan
from pipeline.corpora.segments import assign_split, cut_segments
from pipeline.corpora.tar_archive import MAX_MEMBER_BYTES, TruncatedArchive, iter_members, member_path

if TYPE_CHECKING:
    from pipeline.corpora.download.settings import DownloadSettings

EXPECTED = "00/565800.mp3 ... 99/*.mp3 or raw_30s_audio-{00..99}.tar, and raw_30s.tsv"
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


@CORPORA.register("jamendo")
class JamendoSettings(CorpusSettings):
    """Settings of MTG-Jamendo; see conf/data/jamendo.yaml."""

    title: ClassVar[str] = "MTG-Jamendo"
    citation: ClassVar[str] = "Bogdanov et al. 2019"
    licence: ClassVar[str] = "each track under the Creative Commons licence of its artist"
    how_to_get: ClassVar[str] = "get it with `python -m pipeline.download data=jamendo`, or give data.root=DIR"
    addresses: ClassVar[Mapping[str, str]] = {
        "jamendo": "https://cdn.freesound.org/mtg-jamendo/raw_30s",
        "jamendo_lists": "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data",
    }
    location_settings: ClassVar[tuple[str, ...]] = ("audio", "metadata")

    audio: str | None
    metadata: str | None
    segment_seconds: Seconds | None
    segments_per_track: PositiveInt | None
    min_seconds: Seconds
    excerpt_seconds: Seconds | None
    seed: int
    valid: Fraction
    test: TestShare

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> Jamendo:
        """Open the corpus. durations: not used, since the metadata has them."""
        return Jamendo(self, digest)

    def remote_files(self, download: DownloadSettings, fetch: Callable[[RemoteFile], object]) -> list[RemoteFile]:
        """The metadata and a hundred tars, with the SHA-256 of each from the project's list."""
        root, lists = Path(self.root), download.address("jamendo_lists")
        name = f"raw_30s_{download.quality}_sha256_tars.txt"
        checksums = RemoteFile(f"{lists}/download/{name}", root / name)
        tars = _parse_checksums(checksums.path)
        if not tars:
            fetch(checksums)
            tars = _parse_checksums(checksums.path)
        if not tars:  # e.g. a login page
            checksums.path.unlink(missing_ok=True)
            raise InputError(
                f"{checksums.url} lists 0 tars: expected lines of SHA-256 and name; is addresses.jamendo_lists right?"
            )
        selected = {number for *_, number in tars}
        if download.folders is not None:
            if unknown := {f"{folder:02d}" for folder in download.folders} - selected:
                raise InputError(f"folders={download.folders}: {name} lists {len(tars)} tars, not {min(unknown)}")
            selected = {f"{folder:02d}" for folder in download.folders}
        address = f"{download.address('jamendo')}/{download.quality}"
        return [
            RemoteFile(f"{lists}/raw_30s.tsv", root / "raw_30s.tsv", magic=b"TRACK_ID\t"),
            *(
                RemoteFile(f"{address}/{name}", root / download.quality / name, sha256)
                for sha256, name, number in tars
                if number in selected
            ),
        ]


def _parse_checksums(file: Path) -> list[tuple[str, str, str]]:
    """Return (SHA-256, name, folder number) of every tar in a list; [] if there is no list."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    return re.findall(r"^([0-9a-f]{64}) +(\w[\w.-]*-(\d\d)\.tar)$", text, re.MULTILINE | re.ASCII)


class Track(NamedTuple):
    """A row of the metadata. seconds: the duration of the complete track."""

    id: str
    artist: str
    album: str
    path: str
    seconds: float
    tags: list[str]


class Jamendo:
    """See `pipeline.corpora.base.Corpus`. digest: see `CorpusSettings.open`."""

    def __init__(self, settings: JamendoSettings, digest: AudioDigest | None) -> None:
        self._settings, self._digest = settings, digest
        self.skipped: list[SkippedInput] = []
        root = require_folder(settings.root, EXPECTED, settings.how_to_get)
        self._scan_cache = Path(settings.scan_cache_dir)
        with reading(root):
            self._audio = self._locate(root, "audio", settings.audio, AUDIO_FOLDERS, _has_tracks)
            self._metadata = self._locate(root, "metadata", settings.metadata, METADATA_FILES, Path.is_file)

    def _locate(
        self, root: Path, name: str, path: str | None, usual: tuple[str, ...], is_valid: Callable[[Path], bool]
    ) -> Path:
        """Return the path of a setting, or the first usual path below the root that is valid."""
        candidates = [Path(path)] if path is not None else [root / name for name in usual]
        for candidate in candidates:
            if is_valid(candidate):
                return candidate
        tried = ", ".join(map(printable, candidates))
        raise InputError(f"data.{name} was not found at {tried}: expected {EXPECTED}; {self._settings.how_to_get}")

    def clips(self) -> Iterator[Clip]:
        """Yield the clips sorted by name, folders before tars, the segments of a track in order."""
        self.skipped.clear()
        tracks = self._tracks()
        recordings = self._recordings(tracks)
        if not recordings:
            raise no_clips_error(self._audio, EXPECTED, self._settings.how_to_get)
        if len(recordings) > LARGE_CORPUS and not cache_file(self._scan_cache, self._audio, "probes").exists():
            cache = printable(self._scan_cache)
            print_log(f"looking for duplicates among {len(recordings):,} tracks; the result is cached in {cache}")
        unreadable: dict[str, str] = {}
        cache_path = partial(cache_file, self._scan_cache, self._audio)
        duplicates = find_duplicates(recordings, cache_path, self._digest, unreadable)
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
        settings = self._settings
        seconds = track.seconds if settings.excerpt_seconds is None else min(track.seconds, settings.excerpt_seconds)
        cuts = list(enumerate(cut_segments(seconds, settings.segment_seconds, settings.min_seconds)))
        limit = settings.segments_per_track
        if limit is not None and limit < len(cuts):
            cuts = sorted(random.Random(f"{settings.seed}:{track.id}").sample(cuts, limit))
        split = assign_split(track.artist, settings.seed, settings.valid, settings.test)
        labels = {"track": track.id, "artist": track.artist, "album": track.album, "tags": track.tags}
        key = slug(track.id, length=KEY_LENGTH - 6)
        for number, (start, length) in cuts:
            yield Clip(f"{key}-{number:05d}", recording.path, split, start, length, labels, recording.span)

    def _tracks(self) -> dict[str, Track]:
        """Return the rows of the metadata by their name (`00/565800`); skip those that cannot be used."""
        tracks: dict[str, Track] = {}
        ids: set[str] = set()
        with reading(self._metadata), self._metadata.open(encoding="utf-8", errors="surrogateescape") as file:
            rows = (line.rstrip("\r\n").split("\t") for line in file)
            if next(rows, [])[: len(COLUMNS)] != COLUMNS:
                raise InputError(
                    f"{printable(self._metadata)} is not MTG-Jamendo's metadata: expected the columns {COLUMNS}"
                )
            for number, row in enumerate(rows, 2):
                position = f"line {number} of {self._metadata.name}"
                if len(row) < 5:
                    self._skip("", row[0], f"{position} has {len(row)} columns, expected 5 or more")
                elif not _is_duration(row[4]):
                    self._skip(row[3], row[0], f"{position}: {row[4]!r} is not a duration in seconds")
                elif row[0] in ids or _track_name(row[3]) in tracks:
                    self._skip(row[3], row[0], f"{position} repeats a track")
                else:
                    ids.add(row[0])
                    tracks[_track_name(row[3])] = Track(row[0], row[1], row[2], row[3], float(row[4]), row[5:])
        return tracks

    def _recordings(self, tracks: dict[str, Track]) -> list[Recording]:
        """Return one file per track, sorted by the parts of their names; skip the others."""
        recordings: dict[str, Recording] = {}
        unusable: set[str] = set()
        for recording in self._files():
            title = _track_name(recording.name)
            if title not in tracks:
                self._skip(recording.path, "", f"on disk, not in {self._metadata.name}")
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
                self._skip(tracks[title].path, tracks[title].id, f"in {self._metadata.name}, not on disk")

    def _files(self) -> Iterator[Recording]:
        """Yield the audio files in folders, then those in tars."""
        for name, stamp in list_files(self._audio, (".mp3",), self.skipped):
            yield Recording(name, stamp, int(stamp.partition("-")[0]), f"{self._audio}/{name}", None)
        for tar in sorted(self._audio.glob("*.tar")):
            with reading(tar):
                status = tar.stat()
            for name, offset, size, fault in cached_scan(self._scan_cache, tar, partial(_scan_tar, tar)):
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
