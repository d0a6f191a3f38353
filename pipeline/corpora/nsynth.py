"""NSynth (Engel et al. 2017, arXiv:1704.01279): `nsynth-{train,valid,test}`, unpacked or as the official archives.

The splits are those of NSynth, by instrument; any of them may be missing.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar

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
MAX_ENTRY_LENGTH = 1 << 22  # characters; a note has 600
NO_NOTE = "its entry in the index is not a note"


@CORPORA.register("nsynth")
class NSynthSettings(CorpusSettings):
    """Settings of NSynth; see conf/data/nsynth.yaml."""

    title: ClassVar[str] = "NSynth"
    citation: ClassVar[str] = "Engel et al. 2017, arXiv:1704.01279"
    licence: ClassVar[str] = "published under CC BY 4.0"
    how_to_get: ClassVar[str] = "get it with `python -m pipeline.download data=nsynth`, or give data.root=DIR"
    addresses: ClassVar[Mapping[str, str]] = {"nsynth": "http://download.magenta.tensorflow.org/datasets/nsynth"}

    seconds: Seconds | None

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> NSynth:
        """Open the corpus. digest, durations: not used, since no note is there twice or cut into segments."""
        return NSynth(self.root, self.scan_cache_dir, self.seconds, self.how_to_get)

    def remote_files(self, download: DownloadSettings, fetch: Callable[[RemoteFile], object]) -> list[RemoteFile]:
        """The archives. They have no published checksums, but Google's storage reports an MD5 in each response."""
        names = [f"nsynth-{split}.jsonwav.tar.gz" for split in download.splits]
        return [
            RemoteFile(f"{download.address('nsynth')}/{name}", Path(self.root) / name, magic=GZIP) for name in names
        ]


class NSynth:
    """See `pipeline.corpora.base.Corpus`.

    Args:
        root: The folder.
        scan_cache_dir: Caches the members of archives.
        seconds: Of each note, from its start; None for the whole note.
        how_to_get: What to do if something is missing.
    """

    def __init__(self, root: str, scan_cache_dir: str, seconds: float | None, how_to_get: str) -> None:
        self.root, self.scan_cache_dir = require_folder(root, EXPECTED, how_to_get), Path(scan_cache_dir)
        self.seconds, self.how_to_get = seconds, how_to_get
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
        for split in SPLITS:
            for key, path, span, labels, reason in self._rows(split):
                if not reason and key in seen:
                    reason = "another clip has the same key"
                if reason:
                    self.skipped.append(SkippedInput(printable(path), key, reason))
                    continue
                seen.add(key)
                yield Clip(key, path, split, duration=self.seconds, labels=labels, span=span and tuple(span))
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
        folder = self._folder(split) / "audio"
        with reading(folder):
            on_disk = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        on_disk = {name for name in on_disk if name.endswith(".wav") and not name.startswith(".")}
        listed = set()
        path = self._folder(split) / "examples.json"
        with reading(path), path.open("rb") as index:
            for name, note in iter_json_entries(index, printable(index.name)):
                wav = f"{name}.wav"
                listed.add(wav)
                reason = (
                    NO_NOTE if not isinstance(note, dict) else "" if wav in on_disk else "in the index, not on disk"
                )
                yield [slug(name), f"{folder}/{wav}", None, {} if reason else _select_labels(note), reason]
        for wav in sorted(on_disk - listed):
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
                    entries = iter_json_entries(io.BytesIO(content), member_path(archive, member.name))
                    index = {
                        name: _intern_strings(_select_labels(note)) if isinstance(note, dict) else None
                        for name, note in entries
                    }
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


def iter_json_entries(stream: IO[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a JSON object one by one: NSynth's index is 200 MB, or a gigabyte of Python objects.

    Raises:
        InputError: The stream is not a JSON object, or ends too early.
    """
    reader = codecs.getreader("utf-8")(stream)
    text, at = "", 0
    while True:
        try:
            key, value, at = _parse_entry(text, at)
        except RecursionError as error:
            raise InputError(f"{name} is broken: an entry is nested too deeply; download or create it again") from error
        except ValueError:
            if _CLOSE.match(text, at):
                return
            try:
                more = reader.read(1 << 20)
            except UnicodeDecodeError as error:
                raise InputError(f"{name} is not JSON: {error}") from error
            if not more or len(text) - at > MAX_ENTRY_LENGTH:
                raise InputError(
                    f"{name} is broken: expected one JSON object of notes; download or create it again"
                ) from None
            text, at = text[at:] + more, 0
            continue
        yield key, value


_decode = json.JSONDecoder().raw_decode
_OPEN, _COLON, _NEXT = re.compile(r'\s*[{,]\s*(?=")'), re.compile(r"\s*:\s*"), re.compile(r"\s*(?=[,}])")
_CLOSE = re.compile(r"\s*(\{\s*)?\}")


def _parse_entry(text: str, at: int) -> tuple[str, Any, int]:
    """Return the key, value and end of the entry at `at`; raise ValueError if the text has no complete entry."""
    key, at = _decode(text, _match_end(_OPEN, text, at))
    value, at = _decode(text, _match_end(_COLON, text, at))
    return key, value, _match_end(_NEXT, text, at)


def _match_end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    if not match:
        raise ValueError
    return match.end()


def _select_labels(note: dict[str, Any]) -> dict[str, Any]:
    return {name: note[name] for name in LABELS if name in note}


def _intern_strings(labels: dict[str, Any]) -> dict[str, Any]:
    """Share equal strings, which 300,000 notes repeat, to save memory."""
    return {name: sys.intern(value) if isinstance(value, str) else value for name, value in labels.items()}
