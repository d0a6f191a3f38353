"""A Hugging Face dataset with a column of audio: of the hub, or a local one of parquet, arrow or audio files.

The package `datasets` reads the rows, and our own decoders the audio. Audio that is inside of tables or on the hub is
written below `data.root` once, beside a list of all rows; local audio files are used where they are. No code of a
dataset is run: `datasets` has no loading scripts since version 4, and only formats without pickles are accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import fsspec

from pipeline.common import sound_files
from pipeline.common.console import print_log
from pipeline.common.errors import InputError, first_line
from pipeline.common.files import write_atomic
from pipeline.common.setting_types import Fraction, Seconds
from pipeline.corpora import CORPORA
from pipeline.corpora.base import (
    KEY_LENGTH,
    AudioDigest,
    CorpusSettings,
    Durations,
    SkippedInput,
    TestShare,
    printable,
    slug,
)
from pipeline.corpora.clip import Clip
from pipeline.corpora.labels import Labels, select_labels
from pipeline.corpora.scan_cache import cached_rows
from pipeline.corpora.segments import assign_split, cut_clip

FORMATS = ("arrow", "audiofolder", "parquet")  # the modules of `datasets` that may read a dataset
ROWS_FILE = "rows.jsonl"
SAVED = ("state.json", "dataset_dict.json")  # files of a folder that `save_to_disk` of datasets wrote
Role = Literal["train", "valid", "test", "divide"]  # divide: by the shares of the settings
USUAL_ROLES: dict[str, Role] = {
    **{"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"},
}


@CORPORA.register("huggingface")
class HuggingFaceSettings(CorpusSettings):
    """Settings of a Hugging Face dataset; see conf/data/huggingface.yaml."""

    title: ClassVar[str] = "a Hugging Face dataset"
    licence: ClassVar[str] = "under the licence of its dataset card"
    how_to_get: ClassVar[str] = "preprocess reads it: give data.dataset=USER/NAME, or data.path= of a local dataset"
    location_settings: ClassVar[tuple[str, ...]] = ("path",)
    label_settings: ClassVar[tuple[str, ...]] = ("labels",)

    dataset: str | None
    path: str | None
    config: str | None
    revision: str | None
    audio_column: str | None
    labels: list[str] | None
    splits: dict[str, Role] | None
    segment_seconds: Seconds | None
    min_seconds: Seconds
    seed: int
    valid: Fraction
    test: TestShare

    @property
    def source(self) -> str:
        """The dataset as on the command line, for messages."""
        return f"data.dataset={self.dataset}" if self.path is None else f"data.path={printable(self.path)}"

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> HuggingFace:
        """Open the dataset, and write its audio below `root` unless that is done. digest: not used."""
        return HuggingFace(self, durations)


class _Row(NamedTuple):
    """A row of a dataset. path: below the root if it is relative; reason: why it is skipped, or ""."""

    split: str
    role: Role
    number: int
    path: str
    labels: Labels
    seconds: float | None
    faults: list[str]
    reason: str


class _NoAudioError(Exception):
    """Why a row has no audio."""


class HuggingFace:
    """See `pipeline.corpora.base.Corpus`.

    Raises:
        InputError: The dataset cannot be read, or does not fit the settings; or the root cannot be written.
    """

    def __init__(self, settings: HuggingFaceSettings, durations: Durations | None) -> None:
        self._settings, self._durations, self._root = settings, durations, Path(settings.root)
        self.skipped: list[SkippedInput] = []
        if (settings.dataset is None) == (settings.path is None):
            raise InputError("data=huggingface: expected either data.dataset=USER/NAME or data.path=PATH")
        if settings.path is not None and not Path(settings.path).exists():
            raise InputError(f"{settings.source} does not exist: expected a folder or a .parquet or .arrow file")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.root={printable(self._root)} cannot be written ({error.strerror})") from error
        for _ in self._rows():  # refuses what cannot be used, and writes the audio, before any other work
            pass

    def clips(self) -> Iterator[Clip]:
        """Yield the clips, in the order of the rows."""
        settings = self._settings
        self.skipped.clear()
        is_empty = True
        for row in self._rows():
            key, path = slug(f"{row.split}-{row.number:08d}", length=KEY_LENGTH - 6), str(self._root / row.path)
            self.skipped += [SkippedInput(printable(path), key, fault, is_used=True) for fault in row.faults]
            if row.reason:
                self.skipped.append(SkippedInput(row.path or key, key, row.reason))
                continue
            is_empty = False
            role: str = row.role
            if role == "divide":
                role = assign_split(f"{row.split}/{row.number}", settings.seed, settings.valid, settings.test)
            whole = Clip(key, path, role, 0.0, row.seconds, row.labels)
            yield from cut_clip(whole, settings.segment_seconds, settings.min_seconds)
        if is_empty:
            raise InputError(f"{settings.source} contains no audio that can be used")

    def _rows(self) -> Iterator[_Row]:
        """Yield all rows, from the list below the root if neither the dataset nor the settings have changed.

        A dataset of the hub is read once: another revision has to be named.
        """
        names = {"name", "root", "scan_cache_dir", "min_seconds", "seed", "valid", "test", "segment_seconds"}
        settings = self._settings.model_dump(exclude=names)
        durations = self._durations.kind if self._durations and self._settings.segment_seconds else None
        files = None if self._settings.path is None else _fingerprint(Path(self._settings.path))
        for row in cached_rows(self._root / ROWS_FILE, [settings, durations, files], self._read):
            yield _Row(*row)

    def _read(self) -> Iterator[_Row]:
        """Read the dataset, and write the audio that is not in a local file of its own."""
        splits = self._load()
        roles = self._assign_roles(splits)
        print_log(f"reading {self._settings.source}; its audio is written below {printable(self._root)} once")
        for split, role in roles.items():
            audio, names = self._select_columns(splits[split].features)
            rows = _without_decoding(splits[split].select_columns([audio, *names]), audio)
            for number, row in self._enumerate(rows, split):
                cells = _name_classes({name: row[name] for name in names}, rows.features)
                yield self._read_row(split, role, number, row[audio], cells)

    def _enumerate(self, rows: Any, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of a split with their numbers. Raises InputError if they cannot be read to the end."""
        try:
            yield from enumerate(rows)
        except Exception as error:  # of pyarrow, huggingface_hub and others
            raise self._error(f"its split {split} cannot be read to the end: {first_line(error)}") from error

    def _read_row(self, split: str, role: Role, number: int, audio: object, cells: Mapping[str, object]) -> _Row:
        labels, wrong = select_labels(cells)
        faults = [f"unusable label: {fault}" for fault in wrong]
        path, reason, seconds = "", "", None
        try:
            path = self._locate_audio(f"{split}/{number:08d}", audio)
            if self._durations and self._settings.segment_seconds:
                with suppress(OSError):  # then the decoder says why
                    seconds = self._durations(str(self._root / path))
        except _NoAudioError as error:
            reason = f"no audio: {error}"
        return _Row(split, role, number, path, labels, seconds, faults, reason)

    def _locate_audio(self, name: str, audio: object) -> str:
        """Return the path of a row's audio, which is written below the root if it is not a local file.

        Raises:
            _NoAudioError: The row has no audio, or names a file that does not belong to the dataset.
            InputError: The hub cannot be reached.
        """
        content, address = (audio.get("bytes"), audio.get("path")) if isinstance(audio, dict) else (None, audio)
        content, address = (audio, None) if isinstance(audio, bytes) else (content, address)
        if not content and not address:
            raise _NoAudioError("its cell is empty")
        suffix = Path(str(address)).suffix.lower()
        if not content:
            container = str(address).rpartition("::")[2]  # of an address like zip://a.wav::FILE
            folder = self._settings.path and Path(self._settings.path).resolve()
            is_ours = folder and (Path(container).resolve() == folder or folder in Path(container).resolve().parents)
            if not (is_ours or (folder is None and container.startswith("hf://datasets/"))):
                raise _NoAudioError(f"{printable(str(address)):.200} is not a file of the dataset")
            if container == address and is_ours:
                return str(Path(container).absolute())
            try:
                with fsspec.open(str(address), "rb") as file:
                    content = file.read()
            except Exception as error:  # of huggingface_hub, zipfile and others
                raise self._error(f"{printable(str(address))} cannot be read: {first_line(error)}") from error
        file_name = f"{slug(name.rpartition('/')[0])}/{name.rpartition('/')[2]}"
        path = self._root / (file_name + (suffix if suffix in sound_files.SUFFIXES else ".wav"))
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:  # an unchanged file keeps its modification time
            write_atomic(path, content, shared=True)
        return str(path.relative_to(self._root))

    def _load(self) -> dict[str, Any]:
        """Return the splits of the dataset by their names.

        Raises:
            InputError: The package `datasets` is missing, the dataset cannot be opened, or is of another format.
        """
        try:
            import datasets
        except ImportError as error:
            raise InputError("data=huggingface needs the extra huggingface: `pip install datasets`") from error
        settings, path = self._settings, Path(self._settings.path or "")
        try:
            if settings.path is not None and any((path / name).is_file() for name in SAVED):
                saved = datasets.load_from_disk(str(path))
                return dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            if settings.path is not None and path.is_file():
                kind = path.suffix.lower().lstrip(".")
                if kind not in FORMATS:
                    raise self._error("expected a folder, or a .parquet or .arrow file")
                builder = datasets.load_dataset_builder(kind, data_files=str(path))
            else:
                name = settings.dataset if settings.path is None else str(path.absolute())
                builder = datasets.load_dataset_builder(name, settings.config, revision=settings.revision)
            kind = type(builder).__module__.split(".")[-1]
            if kind not in FORMATS:
                raise self._error(f"its format is {kind}, expected one of {', '.join(FORMATS)}")
            return dict(builder.as_streaming_dataset())
        except InputError:
            raise
        except Exception as error:  # of huggingface_hub, requests, pyarrow and others
            hint = "is the name right, and the network there?" if settings.path is None else "is it such a dataset?"
            raise self._error(f"it cannot be opened ({type(error).__name__}: {first_line(error)}); {hint}") from error

    def _assign_roles(self, splits: Mapping[str, Any]) -> dict[str, Role]:
        """Return the splits that are used, and what each becomes."""
        roles = self._settings.splits
        if roles is None and len(splits) == 1:
            return dict.fromkeys(splits, "divide")
        if roles is None and splits.keys() <= USUAL_ROLES.keys():
            return {name: USUAL_ROLES[name] for name in splits}
        if not roles or not roles.keys() <= splits.keys():
            names = ", ".join(splits)
            raise self._error(f"its splits are {names}; say what each becomes, as data.splits={{NAME: train}}")
        return roles

    def _select_columns(self, features: Mapping[str, Any] | None) -> tuple[str, list[str]]:
        """Return the column of the audio, and those of the labels."""
        columns = features or {}
        audio = self._settings.audio_column
        if audio is None:
            audio = next((name for name, feature in columns.items() if type(feature).__name__ == "Audio"), None)
        shown = ", ".join(columns)
        if audio is None or audio not in columns:
            raise self._error(f"expected a column of audio, data.audio_column={audio or 'NAME'}; it has {shown:.200}")
        if self._settings.labels is None:
            return audio, [name for name, feature in columns.items() if name != audio and _is_label(feature)]
        if unknown := [name for name in self._settings.labels if name not in columns or not _is_label(columns[name])]:
            raise self._error(
                f"data.labels: {unknown[0]!r} is not a column of texts, numbers, classes or lists of texts"
            )
        return audio, [name for name in self._settings.labels if name != audio]

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._settings.source}: {problem}")


def _without_decoding(rows: Any, column: str) -> Any:
    """The rows with the files of the audio: their bytes, or their paths."""
    from datasets import Audio, Value

    if type(rows.features[column]).__name__ != "Audio":
        return rows
    is_path = "audiofolder" in str(getattr(rows.info, "builder_name", ""))
    return rows.cast_column(column, Value("string") if is_path else Audio(decode=False))


def _is_label(feature: Any) -> bool:
    """Whether a column has texts, numbers, classes, or lists of texts or classes."""
    item = getattr(feature, "feature", None)
    dtype = str(getattr(feature if item is None else item, "dtype", ""))
    is_class = type(feature if item is None else item).__name__ == "ClassLabel"
    is_text = dtype in ("string", "large_string")
    return is_class or is_text or (item is None and dtype.startswith(("int", "uint", "float", "bool")))


def _name_classes(row: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row with the names of classes instead of their numbers."""
    cells = dict(row)
    for name, value in row.items():
        item = getattr(features[name], "feature", features[name])
        if type(item).__name__ == "ClassLabel" and value is not None:
            names = dict(enumerate(item.names))
            cells[name] = [names.get(one) for one in value] if isinstance(value, list) else names.get(value)
    return cells


def _fingerprint(path: Path) -> str:
    """Return a hash of the names, sizes and modification times of a file, or of all files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    rows = [[str(file), status.st_size, status.st_mtime_ns] for file in files if (status := os.stat(file))]  # noqa: PTH116
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
