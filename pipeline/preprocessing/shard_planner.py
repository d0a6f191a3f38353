"""The plan of a dataset: which clips go into which shard, and a fingerprint of each shard's inputs.

Clips are read in the corpus's own order and cut into shards, each split on its own. The keys of the clips decide where
a shard ends. So a clip that is added or removed changes the shards around it only, and every other shard keeps its
clips, its fingerprint and its bytes. The clips of a plan are kept in a temporary file: memory does not grow with the
corpus.
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
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from pipeline.common.errors import InputError, MachineError
from pipeline.common.machine import read_at
from pipeline.corpora import UNREADABLE, Clip, SkippedInput, fingerprint, printable
from pipeline.data.build_state import BuildPlan, PlannedShard
from pipeline.data.manifest import skipped_row
from pipeline.data.shard import KEY_PATTERN

SPLIT = re.compile(r"\w+")


class ClipSpool:
    """The clips of planned shards, in a temporary file.

    Each clip is a line of JSON; the fingerprint of a shard is the hash of its lines.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._root = os.path.join(root, "")  # noqa: PTH118 - with a separator at its end
        with _explain_disk_errors():
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="plan-")  # noqa: SIM115 - lives as long as the plan
        self._spans: dict[str, tuple[int, int]] = {}

    def encode_clip(self, clip: Clip) -> bytes:
        """The line of a clip: everything that its sample depends on, except the settings."""
        inside = clip.path.startswith(self._root)
        path = clip.path[len(self._root) :] if inside else clip.path
        row = [clip.key, path, inside, clip.split, clip.start, clip.duration, clip.labels, clip.span, fingerprint(clip)]
        return json.dumps(row).encode() + b"\n"

    def write_shard(self, shard: str, rows: bytes) -> None:
        """Append the lines of a shard."""
        with _explain_disk_errors():
            self._spans[shard] = (self._file.seek(0, os.SEEK_END), len(rows))
            self._file.write(rows)

    def rename_shards(self, names: Mapping[str, str]) -> None:
        """Give the shards their final names, after the last one was written."""
        with _explain_disk_errors():
            self._file.flush()
        self._spans = {names[name]: span for name, span in self._spans.items()}

    def read_shard(self, shard: str) -> list[Clip]:
        """The clips of a shard, in order, with fingerprints and sources. Any thread may call this."""
        start, size = self._spans[shard]
        return [self._decode_clip(line) for line in read_at(self._file.fileno(), size, start).splitlines()]

    def _decode_clip(self, line: bytes) -> Clip:
        key, source, inside, split, start, duration, labels, span, seen_as = json.loads(line)
        path = self._root + source if inside else source
        return Clip(key, path, split, start, duration, labels, span and tuple(span), fingerprint=seen_as, source=source)

    def close(self) -> None:
        """Close the file, which deletes it: it has no name."""
        with suppress(OSError):  # a full disk, whose bytes are not needed any more
            self._file.close()


@contextmanager
def _explain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"the plan of the dataset cannot be written to a temporary file ({error.strerror}): make room in "
            f"{os.environ.get('TMPDIR', '/tmp')}, or set TMPDIR to a folder with more, and run the same command again"
        ) from error


def plan_shards(
    clips: Iterable[Clip],
    spool: ClipSpool,
    samples_per_shard: int,
    old: BuildPlan | None,
    empty_plan: BuildPlan,
    skipped_inputs: Callable[[], Iterable[SkippedInput]],
) -> BuildPlan:
    """Cut a corpus into shards.

    Clips with an invalid key, or with the key of another clip, are skipped.

    Args:
        clips: The clips of the corpus, in its order.
        spool: Where the clips are kept.
        samples_per_shard: The largest number of clips in a shard.
        old: The plan of the existing dataset. Shards with the same clips keep their names.
        empty_plan: The plan without its shards.
        skipped_inputs: Returns the inputs that the corpus skipped; called after the last clip.

    Returns:
        The plan with its shards.

    Raises:
        InputError: The corpus has no clip.
    """
    skipped: list[dict[str, Any]] = []
    open_shards: dict[str, _OpenShard] = {}
    planned: list[PlannedShard] = []
    seen: set[int] = set()  # hashes of keys: a million take 60 MB instead of 200
    for clip in clips:
        key_hash = int.from_bytes(
            hashlib.blake2b(clip.key.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
        )
        if key_hash in seen:
            skipped.append(skipped_row(printable(clip.path), clip.key, "another clip has the same key"))
            continue
        if not KEY_PATTERN.fullmatch(clip.key):
            skipped.append(skipped_row(printable(clip.path), clip.key, "no valid key"))
            continue
        assert SPLIT.fullmatch(clip.split), clip.split
        seen.add(key_hash)
        shard = open_shards.setdefault(clip.split, _OpenShard())
        shard.rows.append(spool.encode_clip(clip))
        if _is_last_of_shard(len(shard.rows), key_hash, samples_per_shard):
            planned.append(shard.close(clip.split, spool))
    planned += [shard.close(split, spool) for split, shard in open_shards.items() if shard.rows]
    if not planned:
        raise InputError("the corpus has no clip that could be used: see data.root and the corpus's own settings")
    planned.sort(key=lambda shard: shard.split)  # stable: in the corpus's order within a split
    names = _assign_names(planned, old.shards if old else [])
    spool.rename_shards(names)
    planned = [replace(shard, name=names[shard.name]) for shard in planned]
    adjusted: list[dict[str, Any]] = []
    for row in skipped_inputs():
        rows = adjusted if row.is_used else skipped
        rows.append(skipped_row(printable(row.path), row.key, row.reason, UNREADABLE in row.reason))
    return replace(empty_plan, shards=planned, skipped=skipped, adjusted=adjusted)


class _OpenShard:
    """A shard that is being filled. Its temporary name is its index among the shards of its split."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.number = 0

    def close(self, split: str, spool: ClipSpool) -> PlannedShard:
        rows = b"".join(self.rows)
        shard = PlannedShard(f"{split}:{self.number}", split, len(self.rows), hashlib.sha256(rows).hexdigest())
        spool.write_shard(shard.name, rows)
        self.rows, self.number = [], self.number + 1
        return shard


def _is_last_of_shard(count: int, key_hash: int, max_clips: int) -> bool:
    """Whether a shard of `count` clips ends here: it is full, or half full and the hash of its last key ends it."""
    return count >= max_clips or (2 * count >= max_clips and key_hash % max(2, max_clips // 4) == 0)


def _assign_names(planned: list[PlannedShard], old: list[PlannedShard]) -> dict[str, str]:
    """The file name of each planned shard: the old one if its clips are the same, else the lowest free number."""
    old_names = {(shard.split, shard.inputs): shard.name for shard in old}
    names = {s.name: old_names[s.split, s.inputs] for s in planned if (s.split, s.inputs) in old_names}
    used, numbers = set(names.values()), dict.fromkeys((s.split for s in planned), 0)
    for shard in planned:
        while shard.name not in names:
            name = f"{shard.split}-{numbers[shard.split]:06d}.tar"
            numbers[shard.split] += 1
            if name not in used:
                names[shard.name] = name
    return names


def tree_fingerprint(root: str | Path, *more: str | Path) -> str:
    """A fingerprint of all files under a folder, and of `more` files or folders: names, sizes, modification times.

    Links are followed, and each folder is visited once. It shows whether a corpus has changed without listing its
    clips: a million files take about three seconds.
    """
    total = hashlib.sha256()
    visited: set[tuple[int, int]] = set()
    for start in [str(path) for path in (root, *more)]:
        folders = [start]
        while folders:
            folder = folders.pop()
            rows, inner = _list_folder(folder, visited)
            rows.sort()
            total.update(os.fsencode("\n".join([os.path.relpath(folder, start), *rows])) + b"\0")
            folders += sorted((os.path.join(folder, name) for name in inner), reverse=True)  # noqa: PTH118
    return total.hexdigest()


def _list_folder(folder: str, visited: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """A line for each file of a folder, and the names of its folders; for a path of a file, one line for it."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        if not stat.S_ISDIR(status.st_mode):
            return [f"{status.st_size}\0{status.st_mtime_ns}"], []
        if (status.st_dev, status.st_ino) in visited:
            return [], []
        visited.add((status.st_dev, status.st_ino))
        rows, inner = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    inner.append(entry.name)
                else:
                    rows.append(f"{entry.name}\0{_describe_file(entry)}")
        return rows, inner
    except OSError as error:
        return [f"!{error.errno}"], []


def _describe_file(entry: os.DirEntry[str]) -> str:
    try:
        status = entry.stat()
    except OSError:  # a dangling link
        return "?"
    return f"{status.st_size}\0{status.st_mtime_ns}"
