"""Finds files of a folder with the same audio.

1. Duplicates with any names and tags: the bytes between the tags are equal (`dedup`).
2. The same samples in several lossless formats (a wav and its flac): the headers and the decoded audio are equal.
3. Versions of a recording, also lossy ones (a wav and its mp3): the same name and duration, different suffixes. Their
   audio is not compared, so all are used, but in one split.

Memory holds 8 bytes per file, and the names of candidates only.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from pipeline.corpora.base import AudioDigest, encode_name
from pipeline.corpora.dedup import Recording, find_duplicates, probe
from pipeline.corpora.scan_cache import cached_map

LOSSLESS = {".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph"}
SAME_DURATION = 0.1  # seconds: the padding of an encoder that does not declare it
ListFiles = Callable[[], Iterator[tuple[str, str]]]  # yields name and stamp of each file, sorted by parts
Row = tuple[str, str, str | None]  # name, stamp and a value, None if the file cannot be read
_T = TypeVar("_T")


def find_duplicate_files(
    root: Path, files: ListFiles, cache_path: Callable[[str], Path], digest: AudioDigest | None
) -> dict[str, str]:
    """Return {name: name of the first file with the same audio} for every duplicate.

    Args:
        root: The folder.
        files: Lists its files.
        cache_path: Returns the file that caches the results of a stage.
        digest: See `find_duplicates`; without it only equal bytes count.
    """

    def recording(name: str, stamp: str) -> Recording:
        return Recording(name, stamp, int(stamp.partition("-")[0]), f"{root}/{name}", None)

    def probes() -> Iterator[Row]:
        items = (
            (name, stamp) for name, stamp in files() if not stamp.startswith("0-")
        )  # empty files are not duplicates
        yield from cached_map(cache_path("probes"), items, lambda name: probe(recording(name, _stamp(root / name))))

    suspects = [recording(name, stamp) for name, stamp, _ in _rows_with_repeated_value(probes)]
    duplicates = find_duplicates(suspects, lambda kind: cache_path(f"copies-{kind}"), digest, {}) if suspects else {}
    same = _find_across_formats(root, files, cache_path, digest, duplicates) if digest else {}
    return {name: same.get(first, first) for name, first in duplicates.items()} | same


def _find_across_formats(
    root: Path, files: ListFiles, cache_path: Callable[[str], Path], digest: AudioDigest, duplicates: dict[str, str]
) -> dict[str, str]:
    """Return {name: name of the first file} for files with the same samples in different lossless formats."""
    formats = {_suffix(name) for name, _ in files()} & LOSSLESS
    if len(formats) < 2:
        return {}

    def lengths() -> Iterator[Row]:
        items = ((name, stamp) for name, stamp in files() if _suffix(name) in LOSSLESS and name not in duplicates)
        yield from cached_map(cache_path("lengths"), items, lambda name: _read_header(f"{root}/{name}"))

    groups = defaultdict(list)
    for name, stamp, value in _rows_with_repeated_value(lengths):
        groups[value].append((name, stamp))
    mixed = {item for group in groups.values() if len({_suffix(name) for name, _ in group}) > 1 for item in group}
    suspects = [item for group in groups.values() for item in group if item in mixed]
    suspects.sort(key=lambda item: item[0].split("/"))
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for name, _, sound in cached_map(cache_path("sounds"), suspects, lambda name: digest(f"{root}/{name}")):
        if sound is not None and first.setdefault(sound, name) != name:
            same[name] = first[sound]
    return same


def find_versions(files: ListFiles, duration: Callable[[str], float | None]) -> list[list[str]]:
    """Return groups of files with the same stem and duration and different suffixes, each sorted.

    duration: returns the seconds of a file; it is called for candidates only.
    """
    if len({_suffix(name) for name, _ in files()}) < 2:
        return []

    def stems() -> Iterator[Row]:
        return ((name, stamp, name.rpartition("/")[2].rpartition(".")[0].lower()) for name, stamp in files())

    by_stem: dict[str | None, list[str]] = defaultdict(list)
    for name, _, stem in _rows_with_repeated_value(stems):
        by_stem[stem].append(name)
    versions: list[list[str]] = []
    for names in by_stem.values():
        if len({_suffix(name) for name in names}) > 1:
            versions += _group_by_duration([(seconds, name) for name in names if (seconds := duration(name))])
    return versions


def follow(links: Mapping[_T, _T], item: _T) -> _T:
    """Return the end of the chain of links that starts at an item: itself, if it has no link."""
    while item in links:
        item = links[item]
    return item


def _group_by_duration(files: list[tuple[float, str]]) -> Iterator[list[str]]:
    """Yield groups of names with nearly equal durations and more than one suffix."""
    group: list[tuple[float, str]] = []
    for seconds, name in [*sorted(files), (float("inf"), "")]:
        if group and seconds - group[-1][0] > SAME_DURATION:
            names = sorted((name for _, name in group), key=lambda name: name.split("/"))
            if len({_suffix(name) for name in names}) > 1:
                yield names
            group = []
        group.append((seconds, name))


def _rows_with_repeated_value(rows: Callable[[], Iterable[Row]]) -> list[Row]:
    """Return the rows whose value occurs more than once; `rows` is called twice."""
    marks = array("Q", (_hash64(value) for *_, value in rows() if value is not None))
    values, counts = np.unique(np.frombuffer(marks, np.uint64) if marks else np.zeros(0), return_counts=True)
    repeated = set(values[counts > 1].tolist())
    return [row for row in rows() if row[2] is not None and _hash64(row[2]) in repeated] if repeated else []


def _stamp(file: Path) -> str:
    return f"{file.stat().st_size}-"


def _hash64(value: str) -> int:
    return int.from_bytes(hashlib.blake2b(encode_name(value), digest_size=8).digest(), "big")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _read_header(path: str) -> str | None:
    """Return the frames, rate and channels of a header, or None if there is none; raise OSError if unreadable."""
    try:
        with open(path, "rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:  # noqa: PTH123
            return f"{sound.frames} {sound.samplerate} {sound.channels}" if sound.frames else None
    except soundfile.LibsndfileError:
        return None
