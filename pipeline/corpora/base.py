"""The interface of corpora, and what they share: keys, skipped inputs, errors."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.common.errors import InputError
from pipeline.corpora.clip import Clip

SPLITS = ("train", "valid", "test")
UNREADABLE = "cannot be read"  # part of the reasons for inputs that another run may be able to read
KEY_LENGTH = 80  # a tar header has 100 bytes for a name: key + ".codes.npy" never needs a pax header


class SkippedInput(NamedTuple):
    """An input that is not encoded, and why. `key` is empty if the input has none."""

    path: str
    key: str
    reason: str


class Durations(Protocol):
    """Measures the durations of files. kind: names its results in the scan cache."""

    kind: str

    def __call__(self, path: str) -> float | None:
        """Return the seconds of audio in a file, or None if it cannot be used; raise OSError if it cannot be read."""
        ...


class Corpus(Protocol):
    """Lists the clips of a corpus without decoding them."""

    name: str
    skipped: list[SkippedInput]  # filled by `clips`, which clears it first

    def clips(self) -> Iterator[Clip]:
        """Yield the clips: the same ones in the same order for the same input; a recording's segments are contiguous.

        Members of an archive are ordered by offset, so that `load` reads it in one pass.
        """
        ...


def slug(name: str, of: str | None = None, length: int = KEY_LENGTH) -> str:
    """Return a key for a name: the name if it is a valid key, else its ASCII letters and a hash.

    Args:
        name: The name, or its readable part.
        of: The full name, if `name` is only its readable part; then the key always ends with the hash.
        length: The maximum length of the key.
    """
    if of is None and re.fullmatch(rf"[A-Za-z0-9_-]{{1,{length}}}", name):
        return name
    mark = hashlib.sha256(encode_name(name if of is None else of)).hexdigest()[:16]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[: length - len(mark) - 1]
    return f"{plain}-{mark}" if plain else mark


def printable(path: str | Path) -> str:
    """Return a path for messages and manifests; bytes that are not UTF-8 are escaped."""
    return encode_name(path).decode("utf-8", "backslashreplace")


def encode_name(name: str | Path) -> bytes:
    """Return the bytes of a name; surrogates, which a name from JSON may contain, are escaped."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return str(name).encode("utf-8", "backslashreplace")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Convert an OSError in the block into an InputError about `path`, or the path that the error names."""
    try:
        yield
    except OSError as error:
        named = printable(error.filename or path)
        raise InputError(f"{named} {UNREADABLE} ({error.strerror or error}): fix this and run again") from error


def require_folder(root: str | Path, expected: str, how_to_get: str) -> Path:
    """Return the corpus folder `root`.

    Args:
        root: The folder.
        expected: What it should contain.
        how_to_get: How to get it.

    Raises:
        InputError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root={printable(root)} is not a folder: expected {expected}; {how_to_get}")
    return root


def no_clips_error(root: Path, expected: str, how_to_get: str) -> InputError:
    """Return the error for a folder without any clip of the corpus."""
    return InputError(f"data.root={printable(root)} contains no clips: expected {expected}; {how_to_get}")
