"""Rows of JSON that took long to find, kept in a file so that a second run finds them at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


def kept(folder: Path, about: Path, find: Callable[[], Iterator[Any]], settings: str = "") -> Iterator[Any]:
    """The rows of `find` about a file, from `folder` where they were found before and the file is still the same.

    A listing is complete or not there: it is renamed into place after the last row.

    Raises:
        InputError: `folder` cannot be written.
    """
    seen = about.stat()
    identity = json.dumps([str(about.resolve()), seen.st_size, seen.st_mtime_ns, settings])
    file = folder / f"{about.name}-{hashlib.sha256(os.fsencode(about.resolve())).hexdigest()[:12]}.jsonl"
    if file.is_file():
        with file.open() as rows:
            if rows.readline().rstrip("\n") == identity:
                for row in rows:
                    yield json.loads(row)
                return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
    except OSError as error:
        raise InputError(
            f"data.listings={folder} cannot be written ({error.strerror}): give a folder of yours"
        ) from error
    try:
        with os.fdopen(handle, "w") as rows:
            print(identity, file=rows)
            for row in find():
                print(json.dumps(row), file=rows)
                yield row
        Path(name).replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
