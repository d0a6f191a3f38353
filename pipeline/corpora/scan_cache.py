"""Caches the results of slow scans as rows of JSON in a file.

A cache file is written atomically, after its last row. Several processes may write the same one.
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

FORMAT = 1  # version of all rows; a change invalidates every cache file
STALE_SECONDS = 86_400  # seconds
LARGE_BYTES = 1 << 30  # bytes


def cached_scan(folder: Path, source: Path, scan: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield the rows of `scan()` about a file, from the cache if the file has not changed.

    Args:
        folder: The cache's folder.
        source: The file that is scanned.
        scan: Yields rows that can be stored as JSON.

    Raises:
        InputError: `folder` cannot be written.
    """
    status = source.stat()
    file = cache_file(folder, source)

    def logged_scan() -> Iterator[Any]:
        if status.st_size > LARGE_BYTES:
            print_log(
                f"scanning {printable(source)}: {status.st_size / 1e9:,.0f} GB are read once; "
                f"the result is cached in {printable(folder)}"
            )
        yield from scan()

    return cached_rows(file, [str(source.resolve()), status.st_size, status.st_mtime_ns], logged_scan)


def cached_rows(file: Path, identity: Any, scan: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield the rows of `scan()`, from the cache if it has the same identity. Rows and identity are stored as JSON.

    Raises:
        InputError: The folder of `file` cannot be written.
    """
    rows = _read_rows(file)
    if next(rows, None) == identity:
        yield from rows
        return
    with _open_cache_file(file) as new:
        print(json.dumps(identity), file=new)
        for row in scan():
            print(json.dumps(row), file=new)
            yield row


def cached_map(
    file: Path, items: Iterable[tuple[str, str]], compute: Callable[[str], Any]
) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, stamp, compute(name)) for each item, from the cache if the name's stamp has not changed.

    Both the items and the cache are sorted, so they are merged line by line with constant memory.

    Args:
        file: The cache file.
        items: (name, stamp) of paths, sorted by the parts of the names.
        compute: Returns a value that can be stored as JSON. If it raises OSError, the value is None and is computed
            again in the next run.

    Raises:
        InputError: The folder of `file` cannot be written.
    """
    rows = _read_rows(file)
    row = next(rows, None)
    with _open_cache_file(file) as new:
        for name, stamp in items:
            while row is not None and row[0].split("/") < name.split("/"):
                row = next(rows, None)
            try:
                value = row[2] if row is not None and row[:2] == [name, stamp] else compute(name)
            except OSError:
                yield name, stamp, None
                continue
            print(json.dumps([name, stamp, value]), file=new)
            yield name, stamp, value


def cache_file(folder: Path, source: Path, kind: str = "members") -> Path:
    """Return the cache file for a source; sources of equal names in different folders have different files."""
    mark = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:12]
    return folder / f"{source.name}-{mark}.{kind}.{FORMAT}.jsonl"


def _read_rows(file: Path) -> Iterator[Any]:
    if file.is_file():
        with file.open() as rows:
            try:
                yield from map(json.loads, rows)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file} is not a valid cache file: delete it, and it is created again") from error


@contextmanager
def _open_cache_file(file: Path) -> Iterator[IO[str]]:
    """Open a cache file for writing; it appears when the block ends without an exception."""
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _delete_stale(file)
            rows = stack.enter_context(open_atomic(file, "w", shared=True, sync=True))
        except OSError as error:
            message = f"data.scan_cache_dir={file.parent} cannot be written ({error.strerror}): choose another folder"
            raise InputError(message) from error
        yield rows


def _delete_stale(file: Path) -> None:
    """Delete the temporary files of runs that were killed."""
    for partial in file.parent.glob(f".{file.name}.*"):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
