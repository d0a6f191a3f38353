"""Rows of JSON that took long to find, kept in a file so that a second run finds them at once.

A listing is whole or not there: it is renamed into place after the last row. Parts that run at the same time may write
the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.common.console import print_log
from pipeline.common.errors import InputError
from pipeline.common.files import open_atomic
from pipeline.corpora.base import printable

FORMAT = 1  # of the rows, whoever writes them: a change makes every listing anew
STALE_SECONDS = 86_400  # seconds
LARGE_BYTES = 1 << 30  # bytes


def cached_scan(folder: Path, about: Path, find: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """The rows of `find` about a file, from `folder` where they were found before and the file is still the same.

    Raises:
        InputError: `folder` cannot be written.
    """
    seen = about.stat()
    identity = [str(about.resolve()), seen.st_size, seen.st_mtime_ns]
    file = cache_file(folder, about)
    rows = _read_rows(file)
    if next(rows, None) == identity:
        yield from rows
        return
    if seen.st_size > LARGE_BYTES:
        print_log(
            f"listing {printable(about)}: {seen.st_size / 1e9:,.0f} GB are read once; "
            f"the result is kept in {printable(folder)}"
        )
    with _open_cache_file(file) as new:
        print(json.dumps(identity), file=new)
        for row in find():
            print(json.dumps(row), file=new)
            yield row


def cached_map(
    file: Path, items: Iterable[tuple[str, str]], find: Callable[[str], Any]
) -> Iterator[tuple[str, str, Any]]:
    """(name, stamp, `find(name)`) for (name, stamp) of paths in ascending order, as tuples of their parts.

    Where `find` raises OSError it is None, and sought again in the next run.

    What was found for a name and stamp in the run before is not sought again: both runs are in order, so they are
    merged line by line, and memory holds one line of each.

    Raises:
        InputError: the folder of `file` cannot be written.
    """
    rows = _read_rows(file)
    row = next(rows, None)
    with _open_cache_file(file) as new:
        for name, stamp in items:
            while row is not None and row[0].split("/") < name.split("/"):
                row = next(rows, None)
            try:
                value = row[2] if row is not None and row[:2] == [name, stamp] else find(name)
            except OSError:
                yield name, stamp, None
                continue
            print(json.dumps([name, stamp, value]), file=new)
            yield name, stamp, value


def cache_file(folder: Path, about: Path, kind: str = "members") -> Path:
    """Where a listing lies: two corpora of one name in different places do not meet."""
    mark = hashlib.sha256(os.fsencode(about.resolve())).hexdigest()[:12]
    return folder / f"{about.name}-{mark}.{kind}.{FORMAT}.jsonl"


def _read_rows(file: Path) -> Iterator[Any]:
    if file.is_file():
        with file.open() as rows:
            try:
                yield from map(json.loads, rows)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file} is no listing of ours: delete it, and it is made anew") from error


@contextmanager
def _open_cache_file(file: Path) -> Iterator[IO[str]]:
    """A file to write lines to, which takes its name only if the block ends well."""
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _delete_stale(file)
            rows = stack.enter_context(open_atomic(file, "w", shared=True, sync=True))
        except OSError as error:
            message = f"data.scan_cache_dir={file.parent} cannot be written ({error.strerror}): give a folder of yours"
            raise InputError(message) from error
        yield rows


def _delete_stale(file: Path) -> None:
    """Delete the partial copies of a listing that runs left behind when they were killed."""
    for partial in file.parent.glob(f".{file.name}.*"):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
