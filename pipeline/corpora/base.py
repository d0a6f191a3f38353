"""What every corpus offers, and what they share: keys, inputs set aside, the refusal of a missing folder."""

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
UNREADABLE = "cannot be read"  # in the reason of what may be readable in another run
KEY_LENGTH = 80  # a tar header holds a name of 100 bytes: key + ".codes.npy" never needs a pax header


class SkippedInput(NamedTuple):
    """An input that the plan leaves out, and why. `key` is empty where the input never got one."""

    path: str
    key: str
    reason: str


class Durations(Protocol):
    """Measures how long files are. kind: of its results, where they are kept."""

    kind: str

    def __call__(self, path: str) -> float | None:
        """Seconds of sound in a file; None where it cannot be used. Raises OSError where it cannot be read."""
        ...


class Corpus(Protocol):
    """A corpus lists its clips and decodes nothing."""

    name: str
    skipped: list[SkippedInput]  # filled while `clips` runs, whole when it ends, begun anew when it starts again

    def clips(self) -> Iterator[Clip]:
        """The plan: the same clips in the same order for the same input, segments of one recording in a row.

        Members of one archive come in the order of their bytes, so that `load` reads it in a single pass.
        """
        ...


def slug(name: str, of: str | None = None, length: int = KEY_LENGTH) -> str:
    """A key for a name: the name where it may be a key, else its plain letters and a hash of all of it.

    of: the full name that the key stands for, where `name` is only its readable part: then the hash is always there.
    """
    if of is None and re.fullmatch(rf"[A-Za-z0-9_-]{{1,{length}}}", name):
        return name
    mark = hashlib.sha256(encode_name(name if of is None else of)).hexdigest()[:16]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[: length - len(mark) - 1]
    return f"{plain}-{mark}" if plain else mark


def printable(path: str | Path) -> str:
    """A path as it may be printed and stored: a name that is not UTF-8 keeps its odd bytes as escapes."""
    return encode_name(path).decode("utf-8", "backslashreplace")


def encode_name(name: str | Path) -> bytes:
    """A name's bytes; one from JSON may hold halves of characters, which no file's name does: these as escapes."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return str(name).encode("utf-8", "backslashreplace")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raises InputError where the block fails to read; path: of what, where the system does not name it."""
    try:
        yield
    except OSError as error:
        named = printable(error.filename or path)
        raise InputError(f"{named} {UNREADABLE} ({error.strerror or error}): mend that, and run again") from error


def require_folder(root: str | Path, looked_for: str, command: str) -> Path:
    """The corpus folder `root`.

    Raises:
        InputError: it is missing or no folder; `looked_for` says what it should hold, `command` what brings it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root={printable(root)} is no folder: expected {looked_for}; {command}")
    return root


def no_clips_error(root: Path, looked_for: str, command: str) -> InputError:
    """The error for a folder that is there but holds nothing of the corpus."""
    return InputError(f"data.root={printable(root)} holds no clip: expected {looked_for}; {command}")
