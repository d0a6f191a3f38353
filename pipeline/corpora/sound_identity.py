"""Files of a folder that are the same sound: copies, hard links, retagged files, and the same sound in other formats.

1. Copies, whatever their names and tags: the bytes between the tags are equal (`duplicates`).
2. The same samples in several lossless formats (a wav and its flac): the headers agree, and so does the decoded sound.
3. Versions of one recording, lossy ones too (a wav and its mp3): one name, several suffixes, the same duration. Nothing
   is compared here, so they are all used, but in one split.

Memory holds 8 bytes a file, and names only of files that may be the same sound as others.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from pipeline.corpora.base import encode_name
from pipeline.corpora.dedup import AudioDigest, Recording, find_duplicates, probe
from pipeline.corpora.scan_cache import cached_map

LOSSLESS = {".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph"}
SAME_DURATION = 0.1  # seconds: an encoder's padding, where the file does not declare it
ListFiles = Callable[
    [], Iterator[tuple[str, str]]
]  # name and stamp of each file, in ascending order of the names' parts
Row = tuple[str, str, str | None]  # name, stamp and a value; None where the file cannot be read


def find_duplicate_files(
    root: Path, files: ListFiles, listing: Callable[[str], Path], digest: AudioDigest | None
) -> dict[str, str]:
    """{name: the first name of the same sound} for every file that is not the first of its sound.

    listing: the file in which results of a kind are kept; digest: see `duplicates`. Without it only equal bytes count.
    """

    def recording(name: str, stamp: str) -> Recording:
        return Recording(name, stamp, int(stamp.partition("-")[0]), f"{root}/{name}", None)

    def probes() -> Iterator[Row]:
        items = ((name, stamp) for name, stamp in files() if not stamp.startswith("0-"))  # empty files are no copies
        yield from cached_map(listing("probes"), items, lambda name: probe(recording(name, _stamp(root / name))))

    suspects = [recording(name, stamp) for name, stamp, _ in _rows_with_repeated_value(probes)]
    copies = find_duplicates(suspects, lambda kind: listing(f"copies-{kind}"), digest, {}) if suspects else {}
    same = _find_across_formats(root, files, listing, digest, copies) if digest else {}
    return {name: same.get(first, first) for name, first in copies.items()} | same


def _find_across_formats(
    root: Path, files: ListFiles, listing: Callable[[str], Path], digest: AudioDigest, copies: dict[str, str]
) -> dict[str, str]:
    """The same samples in several lossless formats."""
    formats = {_suffix(name) for name, _ in files()} & LOSSLESS
    if len(formats) < 2:
        return {}

    def lengths() -> Iterator[Row]:
        items = ((name, stamp) for name, stamp in files() if _suffix(name) in LOSSLESS and name not in copies)
        yield from cached_map(listing("lengths"), items, lambda name: _read_header(f"{root}/{name}"))

    groups = defaultdict(list)
    for name, stamp, value in _rows_with_repeated_value(lengths):
        groups[value].append((name, stamp))
    mixed = {item for group in groups.values() if len({_suffix(name) for name, _ in group}) > 1 for item in group}
    suspects = [item for group in groups.values() for item in group if item in mixed]
    suspects.sort(key=lambda item: item[0].split("/"))
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for name, _, sound in cached_map(listing("sounds"), suspects, lambda name: digest(f"{root}/{name}")):
        if sound is not None and first.setdefault(sound, name) != name:
            same[name] = first[sound]
    return same


def find_versions(files: ListFiles, duration: Callable[[str], float | None]) -> list[list[str]]:
    """Names that differ in folder and suffix only and have the same duration, several suffixes among them, in order.

    duration: of a file by its name, in seconds; asked for these names only.
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


def _group_by_duration(files: list[tuple[float, str]]) -> Iterator[list[str]]:
    """Names whose durations follow each other closely, where they have several suffixes."""
    group: list[tuple[float, str]] = []
    for seconds, name in [*sorted(files), (float("inf"), "")]:
        if group and seconds - group[-1][0] > SAME_DURATION:
            names = sorted((name for _, name in group), key=lambda name: name.split("/"))
            if len({_suffix(name) for name in names}) > 1:
                yield names
            group = []
        group.append((seconds, name))


def _rows_with_repeated_value(rows: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows whose value other rows have too; the rows are read twice."""
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
    """Frames, rate and channels, as the header has them; None where there is none. Raises OSError."""
    try:
        with open(path, "rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:  # noqa: PTH123
            return f"{sound.frames} {sound.samplerate} {sound.channels}" if sound.frames else None
    except soundfile.LibsndfileError:
        return None
