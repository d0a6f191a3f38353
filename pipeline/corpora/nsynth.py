"""NSynth (Engel et al. 2017, arXiv:1704.01279): `nsynth-{train,valid,test}`, unpacked or as the official archives.

The splits are those of NSynth, by instrument, unless a table lists others; any of them may be missing.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.common.errors import InputError
from pipeline.common.setting_types import Seconds
from pipeline.corpora import CORPORA
from pipeline.corpora.base import (
    SPLITS,
    AudioDigest,
    CorpusSettings,
    Durations,
    RemoteFile,
    SkippedInput,
    no_clips_error,
    printable,
    reading,
    require_folder,
    slug,
)
from pipeline.corpora.clip import Clip
from pipeline.corpora.scan_cache import cached_scan
from pipeline.corpora.tar_archive import MAX_MEMBER_BYTES, Member, TruncatedArchive, iter_members, member_path

if TYPE_CHECKING:
    from pipeline.corpora.download.settings import DownloadSettings

EXPECTED = "nsynth-{train,valid,test}/examples.json with audio/*.wav, or nsynth-{train,valid,test}.jsonwav.tar.gz"
GZIP = b"\x1f\x8b"
LABELS = (
    *("pitch", "velocity", "instrument", "instrument_str", "instrument_family", "instrument_family_str"),
    *("instrument_source", "instrument_source_str", "qualities_str", "note_str"),
)
NO_NOTE = "its entry in the index is not a note"


@CORPORA.register("nsynth")
class NSynthSettings(CorpusSettings):
    """Settings of NSynth; see conf/data/nsynth.yaml."""

    title: ClassVar[str] = "NSynth"
    citation: ClassVar[str] = "Engel et al. 2017, arXiv:1704.01279"
    licence: ClassVar[str] = "published under CC BY 4.0"
    how_to_get: ClassVar[str] = "get it with `python -m pipeline.download data=nsynth`, or give data.root=DIR"
    addresses: ClassVar[Mapping[str, str]] = {"nsynth": "http://download.magenta.tensorflow.org/datasets/nsynth"}

    optional_settings: ClassVar[tuple[str, ...]] = ("splits",)

    seconds: Seconds | None
    splits: str | None

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> NSynth:
        """Open the corpus. digest, durations: not used, since no note is there twice or cut into segments."""
        return NSynth(self.root, self.scan_cache_dir, self.seconds, self.how_to_get, self.splits)

    def remote_files(self, download: DownloadSettings, fetch: Callable[[RemoteFile], object]) -> list[RemoteFile]:
        """The archives. They have no published checksums, but Google's storage reports an MD5 in each response."""
        address, root = download.address("nsynth"), Path(self.root)
        names = [f"nsynth-{split}.jsonwav.tar.gz" for split in download.splits]
        archives = [RemoteFile(f"{address}/{name}", root / name, magic=GZIP) for name in names]
        return (
            archives if self.splits is None else [RemoteFile(f"{address}/{self.splits}", root / self.splits), *archives]
        )


class NSynth:
    """See `pipeline.corpora.base.Corpus`.

    Args:
        root: The folder.
        scan_cache_dir: Caches the members of archives.
        seconds: Of each note, from its start; None for the whole note.
        how_to_get: What to do if something is missing.
        splits: The table that lists the notes of each split, in `root`; None for NSynth's own splits.
    """

    def __init__(
        self, root: str, scan_cache_dir: str, seconds: float | None, how_to_get: str, splits: str | None = None
    ) -> None:
        self.root, self.scan_cache_dir = require_folder(root, EXPECTED, how_to_get), Path(scan_cache_dir)
        self.seconds, self.splits, self.how_to_get = seconds, splits, how_to_get
        self.skipped: list[SkippedInput] = []
        with reading(self.root):
            self._refuse_incomplete()

    def _refuse_incomplete(self) -> None:
        if not any(self._folder(split).is_dir() or self._archive(split).is_file() for split in SPLITS):
            raise no_clips_error(self.root, EXPECTED, self.how_to_get)
        for split in SPLITS:
            folder = self._folder(split)
            if folder.is_dir() and not self._has_index(split) and not self._archive(split).is_file():
                raise InputError(f"{printable(folder)} has no examples.json, the index of the notes; {self.how_to_get}")

    def clips(self) -> Iterator[Clip]:
        """Yield the clips in the order of the index, or of the archive."""
        self.skipped.clear()
        seen: set[str] = set()
        listed = None if self.splits is None else _read_splits(self.root / self.splits, self.how_to_get)
        for split in SPLITS:
            for key, path, span, labels, reason in self._rows(split):
                if listed is not None and key not in listed:
                    continue
                if not reason and key in seen:
                    reason = "another clip has the same key"
                if reason:
                    self.skipped.append(SkippedInput(printable(path), key, reason))
                    continue
                seen.add(key)
                own_split = split if listed is None else listed[key]
                yield Clip(key, path, own_split, duration=self.seconds, labels=labels, span=span and tuple(span))
        if listed is not None and (missing := len(listed) - len(seen)):
            reason = f"{missing} of {len(listed)} notes of this table are not in the corpus, or are skipped"
            self.skipped.append(SkippedInput(printable(self.root / str(self.splits)), "", reason))
        if not seen:
            raise no_clips_error(self.root, EXPECTED, self.how_to_get)

    def _folder(self, split: str) -> Path:
        return self.root / f"nsynth-{split}"

    def _archive(self, split: str) -> Path:
        return self.root / f"nsynth-{split}.jsonwav.tar.gz"

    def _has_index(self, split: str) -> bool:
        return (self._folder(split) / "examples.json").is_file()

    def _rows(self, split: str) -> Iterator[list[Any]]:
        if self._has_index(split):
            return self._unpacked_rows(split)
        if self._archive(split).is_file():
            return cached_scan(self.scan_cache_dir, self._archive(split), partial(self._archive_rows, split))
        return iter(())

    def _unpacked_rows(self, split: str) -> Iterator[list[Any]]:
        """Yield [key, path, span, labels, reason to skip it or ""] for every note in the index or on disk."""
        folder, path = self._folder(split) / "audio", self._folder(split) / "examples.json"
        with reading(folder):
            on_disk = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        on_disk = {name for name in on_disk if name.endswith(".wav") and not name.startswith(".")}
        with reading(path):
            index = _parse_index(path.read_bytes(), printable(path))
        for name, labels in index.items():
            reason = NO_NOTE if labels is None else "" if f"{name}.wav" in on_disk else "in the index, not on disk"
            yield [slug(name), f"{folder}/{name}.wav", None, {} if reason else labels, reason]
        for wav in sorted(on_disk - {f"{name}.wav" for name in index}):
            yield [slug(wav[:-4]), f"{folder}/{wav}", None, {}, "on disk, not in the index"]

    def _archive_rows(self, split: str) -> Iterator[list[Any]]:
        """Yield the rows of an archive in one pass; its index may precede or follow the audio."""
        archive = self._archive(split)
        index: dict[str, dict[str, Any] | None] | None = None
        early: list[Member] = []  # audio before the index
        listed: set[str] = set()
        fault = ""

        def row(member: Member) -> list[Any]:
            assert index is not None
            name = PurePosixPath(member.name).name[:-4]
            labels = index.get(name)
            reason = "" if labels else NO_NOTE if name in index else "in the archive, not in the index"
            reason = f"too large: {member.size} bytes" if member.size > MAX_MEMBER_BYTES else reason
            listed.add(name)
            return [slug(name), member_path(archive, member.name), [member.offset, member.size], labels or {}, reason]

        try:
            for member, content in iter_members(archive, content_suffix="examples.json"):
                if content is not None:
                    index = _parse_index(content, member_path(archive, member.name))
                    yield from map(row, early)
                elif member.name.endswith(".wav") and not PurePosixPath(member.name).name.startswith("."):
                    if index is None:
                        early.append(member)
                    else:
                        yield row(member)
        except TruncatedArchive as error:
            fault = f"truncated archive: {error}"
        if index is None:
            raise InputError(
                f"{printable(archive)} contains no examples.json, the index of its notes {fault}; {self.how_to_get}"
            )
        if fault:
            yield ["", str(archive), None, {}, fault]
        for name in sorted(index.keys() - listed):
            yield [slug(name), member_path(archive, f"{name}.wav"), None, {}, "in the index, not in the archive"]


def _read_splits(path: Path, how_to_get: str) -> dict[str, str]:
    """The split of each note by its key, from a table with the columns `id` and `split`.

    Raises:
        InputError: The table is missing, has other columns, or names another split.
    """
    if not path.is_file():
        raise InputError(f"data.splits={printable(path.name)}: {printable(path)} is missing; {how_to_get}")
    with reading(path), path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        if not {"id", "split"} <= {*(table.fieldnames or [])}:
            raise InputError(f"{printable(path)}: expected a CSV file with the columns id and split")
        rows = {slug(row["id"] or ""): row["split"] for row in table}
    if wrong := next((split for split in rows.values() if split not in SPLITS), None):
        raise InputError(f"{printable(path)}: unknown split {wrong:.40}, expected one of {', '.join(SPLITS)}")
    return rows


def _parse_index(content: bytes, path: str) -> dict[str, dict[str, Any] | None]:
    """Return the labels of each note of an index by its name; None for an entry that is not a note.

    Raises:
        InputError: The index is not a JSON object.
    """
    try:
        index = json.loads(content, object_hook=_select_labels)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "an entry is nested too deeply"
        raise InputError(f"{path} is broken ({reason}): download or create it again") from error
    if not isinstance(index, dict):
        raise InputError(f"{path} is broken: expected one JSON object of notes; download or create it again")
    return {name: labels if isinstance(labels, dict) else None for name, labels in index.items()}


def _select_labels(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the labels of a note while it is parsed: 300,000 complete notes would take a gigabyte."""
    if "note_str" not in entry and "pitch" not in entry:  # the index itself
        return entry
    return {
        name: sys.intern(entry[name]) if type(entry[name]) is str else entry[name] for name in LABELS if name in entry
    }
