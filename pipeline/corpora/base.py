"""The interface of corpora, and what they share: settings, keys, skipped inputs, errors."""

from __future__ import annotations

import hashlib
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Protocol

from pydantic import AfterValidator, ValidationInfo

from pipeline.common.errors import InputError
from pipeline.common.setting_types import FractionBelow1
from pipeline.common.settings import Settings
from pipeline.corpora.clip import Clip

if TYPE_CHECKING:
    from pipeline.corpora.download.settings import DownloadSettings

SPLITS = ("train", "valid", "test")
UNREADABLE = "cannot be read"  # part of the reasons for inputs that another run may be able to read
KEY_LENGTH = 80  # a tar header has 100 bytes for a name: key + ".codes.npy" never needs a pax header


class SkippedInput(NamedTuple):
    """An input that is not encoded, and why.

    key: Empty if the input has none. is_used: Whether only a part of the input is skipped, such as its labels.
    """

    path: str
    key: str
    reason: str
    is_used: bool = False


class Durations(Protocol):
    """Measures the durations of files. kind: names its results in the scan cache."""

    kind: str

    def __call__(self, path: str) -> float | None:
        """Return the seconds of audio in a file, or None if it cannot be used; raise OSError if it cannot be read."""
        ...


AudioDigest = Callable[[str | bytes], str | None]


class Corpus(Protocol):
    """Lists the clips of a corpus without decoding them."""

    skipped: list[SkippedInput]  # filled by `clips`, which clears it first

    def clips(self) -> Iterator[Clip]:
        """Yield the clips: the same ones in the same order for the same input; a recording's segments are contiguous.

        Members of an archive are ordered by offset, so that `load` reads it in one pass.
        """
        ...


@dataclass(frozen=True)
class RemoteFile:
    """A file to download to `path`. sha256: as published; magic: its first bytes."""

    url: str
    path: Path
    sha256: str | None = None
    magic: bytes = b""


class CorpusSettings(Settings):
    """The settings of a corpus, which are those of its file in conf/data, and its facts.

    Attributes:
        title, citation, licence: For people, such as the readers of a model card.
        how_to_get: What to do if it is missing, or why it cannot be downloaded; part of errors.
        addresses: The servers to download it from, by the names of the settings `addresses.NAME`.
        location_settings: The settings besides `root` that say where the corpus is, not what it contains.
        label_settings: The settings that decide the labels of clips, and nothing else. They may change while a dataset
            is updated: the shards whose clips get other labels are encoded again.
        optional_settings: Settings that a dataset records only where they are set: datasets of before have none.
        root: Its folder.
        scan_cache_dir: A folder that caches what slow scans found.
    """

    title: ClassVar[str]
    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    how_to_get: ClassVar[str] = "give the folder as data.root=DIR"
    addresses: ClassVar[Mapping[str, str]] = {}
    location_settings: ClassVar[tuple[str, ...]] = ()
    label_settings: ClassVar[tuple[str, ...]] = ()
    optional_settings: ClassVar[tuple[str, ...]] = ()

    name: str
    root: str
    scan_cache_dir: str

    @abstractmethod
    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> Corpus:
        """Open the corpus.

        Args:
            digest: Returns a hash of the decoded audio of a file, given by its path or its bytes; None if it cannot be
                decoded. For finding files with the same audio; by default only equal bytes count.
            durations: Measures files that are cut into segments; without it, each is one segment.

        Raises:
            InputError: The folder is missing, or is not this corpus.
        """

    def remote_files(self, download: DownloadSettings, fetch: Callable[[RemoteFile], object]) -> list[RemoteFile]:
        """The files to download.

        Args:
            download: The settings of the download.
            fetch: Downloads a small file, such as a list of checksums, at once.

        Raises:
            InputError: The corpus cannot be downloaded, or a setting does not fit what the publisher offers.
        """
        raise InputError(f"data={self.name} cannot be downloaded: {self.how_to_get}")

    @classmethod
    def credit(cls) -> str:
        """Title, citation and licence in one phrase."""
        citation = f" ({cls.citation})" if cls.citation else ""
        return f"{cls.title}{citation}" + (f", {cls.licence}" if cls.licence else "")


def _check_shares(test: float, info: ValidationInfo) -> float:
    if test + info.data.get("valid", 0) >= 1:
        raise ValueError(f"expected less than 1 with data.valid={info.data['valid']}, which leaves some to train on")
    return test


TestShare = Annotated[FractionBelow1, AfterValidator(_check_shares)]  # of a class with a setting `valid`


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
