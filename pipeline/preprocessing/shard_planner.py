"""From a corpus to the plan of a cache: which clips go into which shard, and the fingerprint of each shard's inputs.

Clips are taken in the corpus's own order, split by split, and cut into shards at places that the keys themselves
choose. So a clip added or removed moves the cuts around it only, and every other shard keeps its clips, its
fingerprint and its bytes. The clips of a plan wait in a temporary file: memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pipeline.common.errors import InputError, MachineError
from pipeline.corpora import UNREADABLE, Clip, fingerprint
from pipeline.data.build_state import BuildPlan, PlannedShard
from pipeline.data.manifest import skipped_row
from pipeline.data.shard import KEY_PATTERN

SPLIT = re.compile(r"\w+")


@dataclass(frozen=True)
class PlannedClip:
    """A clip of a plan and what its input looked like then. path: the clip's, from the corpus folder on."""

    clip: Clip
    path: str
    fingerprint: str


class ClipSpool:
    """The clips of planned shards, in a temporary file. Lines of JSON: also what a shard's fingerprint is made of."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._root = os.path.join(root, "")  # noqa: PTH118 - with a separator at its end
        with _explain_disk_errors():
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="plan-")  # noqa: SIM115 - lives as long as the plan
        self._spans: dict[str, tuple[int, int]] = {}

    def encode_clip(self, clip: Clip) -> bytes:
        """All that a sample depends on, but for the settings."""
        inside = clip.path.startswith(self._root)
        path = clip.path[len(self._root) :] if inside else clip.path
        row = [clip.key, path, inside, clip.split, clip.start, clip.duration, clip.labels, clip.span, fingerprint(clip)]
        return json.dumps(row).encode() + b"\n"

    def write_shard(self, shard: str, rows: bytes) -> None:
        """Keep the rows of a shard."""
        with _explain_disk_errors():
            self._spans[shard] = (self._file.seek(0, os.SEEK_END), len(rows))
            self._file.write(rows)

    def rename_shards(self, names: Mapping[str, str]) -> None:
        """Give the shards their names; the spool is complete."""
        with _explain_disk_errors():
            self._file.flush()
        self._spans = {names[name]: place for name, place in self._spans.items()}

    def read_shard(self, shard: str) -> list[PlannedClip]:
        """The clips of a shard, in order; any thread may ask."""
        start, size = self._spans[shard]
        return [self._decode_clip(line) for line in os.pread(self._file.fileno(), size, start).splitlines()]

    def _decode_clip(self, line: bytes) -> PlannedClip:
        key, path, inside, split, start, duration, labels, span, seen = json.loads(line)
        full = self._root + path if inside else path
        return PlannedClip(Clip(key, full, split, start, duration, labels, span and tuple(span)), path, seen)

    def close(self) -> None:
        """Let go of the file, which has no name: its bytes are gone with it."""
        with suppress(OSError):  # of bytes that found no room
            self._file.close()


@contextmanager
def _explain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"the plan of the cache cannot be written to a temporary file ({error.strerror}): make room in "
            f"{os.environ.get('TMPDIR', '/tmp')}, or set TMPDIR to a folder with more, and run the same command again"
        ) from error


def plan_shards(
    clips: Iterable[Clip],
    spool: ClipSpool,
    samples_per_shard: int,
    old: BuildPlan | None,
    blank: BuildPlan,
    set_aside: Callable[[], Iterable[Any]],
) -> BuildPlan:
    """Cut a corpus into shards of at most `samples_per_shard` clips, and keep their clips in the spool.

    old: the plan that the cache was made by, whose shards keep their names where their clips are the same;
    blank: the plan but for its shards; set_aside: what the corpus left out, asked for when all clips are listed.
    Clips whose key is no key, or is another clip's, are set aside. Raises InputError for a corpus without any clip.
    """
    aside: list[dict[str, Any]] = []
    open_shards: dict[str, _OpenShard] = {}
    planned: list[PlannedShard] = []
    seen: set[int] = set()  # of digests: a million keys are 60 MB, not 200
    for clip in clips:
        mark = int.from_bytes(hashlib.blake2b(clip.key.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
        reason = (
            "another clip has the same key"
            if mark in seen
            else ""
            if KEY_PATTERN.fullmatch(clip.key)
            else "no valid key"
        )
        if reason:
            aside.append(skipped_row(printable_path(clip.path), clip.key, reason))
            continue
        assert SPLIT.fullmatch(clip.split), clip.split
        seen.add(mark)
        shard = open_shards.setdefault(clip.split, _OpenShard())
        shard.rows.append(spool.encode_clip(clip))
        if _is_last_of_shard(len(shard.rows), mark, samples_per_shard):
            planned.append(shard.close(clip.split, spool))
    planned += [shard.close(split, spool) for split, shard in open_shards.items() if shard.rows]
    if not planned:
        raise InputError("the corpus has no clip that could be used: see data.root and the corpus's own settings")
    planned.sort(key=lambda shard: shard.split)  # stable: in the corpus's order within a split
    names = _assign_names(planned, old.shards if old else [])
    spool.rename_shards(names)
    planned = [replace(shard, name=names[shard.name]) for shard in planned]
    aside += [skipped_row(printable_path(a.path), a.key, a.reason, UNREADABLE in a.reason) for a in set_aside()]
    return replace(blank, shards=planned, skipped=aside)


class _OpenShard:
    """A shard that still takes clips; it gets a passing name, its place among the shards of its split."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.number = 0

    def close(self, split: str, spool: ClipSpool) -> PlannedShard:
        rows = b"".join(self.rows)
        shard = PlannedShard(f"{split}:{self.number}", split, len(self.rows), hashlib.sha256(rows).hexdigest())
        spool.write_shard(shard.name, rows)
        self.rows, self.number = [], self.number + 1
        return shard


def _is_last_of_shard(count: int, mark: int, most: int) -> bool:
    """Whether a shard of `count` clips ends here: when it is full, or past its half where the last key says so."""
    return count >= most or (2 * count >= most and mark % max(2, most // 4) == 0)


def _assign_names(planned: list[PlannedShard], old: list[PlannedShard]) -> dict[str, str]:
    """The file name of every planned shard: its old one where its clips are the same, else the lowest free number."""
    kept = {(shard.split, shard.inputs): shard.name for shard in old}
    names = {s.name: kept[s.split, s.inputs] for s in planned if (s.split, s.inputs) in kept}
    taken, numbers = set(names.values()), dict.fromkeys((s.split for s in planned), 0)
    for shard in planned:
        while shard.name not in names:
            name = f"{shard.split}-{numbers[shard.split]:06d}.tar"
            numbers[shard.split] += 1
            if name not in taken:
                names[shard.name] = name
    return names


def tree_fingerprint(root: str | Path, *more: str | Path) -> str:
    """A fingerprint of every file under a folder, and of `more` files or folders: names, sizes, times of change.

    Links are followed, and each folder is seen once. It answers "is anything new?" without listing the corpus: a
    million files take about three seconds.
    """
    total = hashlib.sha256()
    visited: set[tuple[int, int]] = set()
    places = [str(place) for place in (root, *more)]
    for place in places:
        folders = [place]
        while folders:
            folder = folders.pop()
            rows, inner = _list_folder(folder, visited)
            rows.sort()
            total.update(os.fsencode("\n".join([os.path.relpath(folder, place), *rows])) + b"\0")
            folders += sorted((os.path.join(folder, name) for name in inner), reverse=True)  # noqa: PTH118
    return total.hexdigest()


def _list_folder(folder: str, visited: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """What a folder's files look like, and the names of its folders; of a file itself, what that looks like."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        if not stat.S_ISDIR(status.st_mode):
            return [f"{status.st_size}\0{status.st_mtime_ns}"], []
        if (status.st_dev, status.st_ino) in visited:
            return [], []
        visited.add((status.st_dev, status.st_ino))
        return _scan_folder(folder)
    except OSError as error:
        return [f"!{error.errno}"], []


def _scan_folder(folder: str) -> tuple[list[str], list[str]]:
    """What a folder's files look like, and its folders."""
    rows, inner = [], []
    descriptor = os.open(folder, os.O_RDONLY)  # names are looked up from here: a tenth faster than whole paths
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_dir():
                    inner.append(entry.name)
                    continue
                try:
                    status = entry.stat()
                    rows.append(f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}")
                except OSError:  # a link to nowhere
                    rows.append(f"{entry.name}\0?")
    finally:
        os.close(descriptor)
    return rows, inner


def printable_path(path: str) -> str:
    """A path as JSON can hold it: a name that is not UTF-8 keeps its odd bytes as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
