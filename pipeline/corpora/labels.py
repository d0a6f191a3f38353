"""Labels of the recordings of a folder: from a table, from files beside them, and from the names of their folders.

A label is a text (a category), a number, or a list of texts (a set of tags). The more specific source wins: a file
beside the recording over the table, and the table over the names of folders. Labels that cannot be used are skipped and
reported; the others are used.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import InputError, first_line
from pipeline.corpora.base import SkippedInput, printable, reading

if TYPE_CHECKING:
    from pipeline.corpora.folder import FolderSettings

FILE_COLUMNS = ("file_name", "filename", "file", "path", "audio", "audio_path", "wav", "name")  # the first one counts
MAX_BYTES_BESIDE = 1 << 20  # of a file of labels beside a recording
MAX_TEXT = 10_000  # characters of a label
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")  # not 007, which is a name
_SEPARATOR = re.compile(r"\s*[,;|]\s*")

Label = str | int | float | list[str]
Labels = dict[str, Label]


class LabelReader:
    """Labels of recordings, by the settings of a folder. Reads the table, if there is one, completely.

    Raises:
        InputError: The table cannot be used.
    """

    def __init__(self, settings: FolderSettings, root: Path) -> None:
        self._root, self._folder_names, self._beside = root, settings.labels_from_folders, settings.labels_beside
        self._table: LabelTable | None = None
        if settings.labels is not None:
            path = Path(settings.labels)
            path = path if path.exists() or not (root / path).exists() else root / path
            self._table = LabelTable(path, root, settings.labels_file_column, settings.labels_list_columns)

    def read(self, name: str) -> tuple[Labels, list[str]]:
        """Return the labels of a recording, and reasons why some are missing. name: its path below the root."""
        folders = name.split("/")[:-1]
        labels: Labels = dict(zip(self._folder_names, folders, strict=False))
        missing = [f"in no folder that names its {label}" for label in self._folder_names[len(folders) :]]
        faults: list[str] = []
        if self._table is not None:
            row = self._table.find(name)
            labels |= row or {}
            missing += [] if row else [f"not in {self._table.name}"]
        if self._beside:
            beside, faults = _read_beside(self._root / name.rpartition(".")[0])
            labels |= beside
            missing += [] if beside else ["no label in a .json or .txt beside it"]
        return labels, faults + ([f"no label: {', '.join(missing)}"] if missing else [])

    def unused(self) -> Iterator[SkippedInput]:
        """Yield the rows and cells of the table that were not used, after all recordings were read.

        Raises:
            InputError: No row names a recording.
        """
        return self._table.unused() if self._table is not None else iter(())


class _Row(NamedTuple):
    position: str
    labels: Labels


class LabelTable:
    """A table with a column that names a recording; the other columns are labels.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file.
        root: The folder of the recordings. Names are paths below it, with or without suffix, or absolute paths.
        file_column: The column of the names; None for the first of `FILE_COLUMNS` that there is.
        list_columns: The columns of a .csv or .tsv whose cells are lists.
    """

    def __init__(self, path: Path, root: Path, file_column: str | None, list_columns: Iterable[str]) -> None:
        self._path, self._root, self.name = path, root, printable(path.name)
        self._rows: dict[str, _Row] = {}
        self._used: dict[str, str] = {}  # the names that recordings have, and the row that counts for each
        self._skipped: list[SkippedInput] = []
        read_rows = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        if path.suffix.lower() not in read_rows or not path.is_file():
            raise self._error("expected a .csv, .tsv, .jsonl or .parquet file")
        try:
            with reading(path):
                rows = [*read_rows[path.suffix.lower()](path)]
        except (ValueError, csv.Error, RecursionError) as error:
            raise self._error(f"it cannot be read: {first_line(error)}") from error
        cells = [(line, row) for line, row in rows if isinstance(row, dict)]
        for line, row in rows:
            if isinstance(row, str):
                self._skip("", f"line {line} of {self.name} {row}")
        if not cells:
            raise self._error(f"no row can be used: {self._skipped[0].reason if rows else 'it has none'}")
        column = self._find_file_column({name: None for _, row in cells for name in row}, file_column)
        if path.suffix.lower() in (".csv", ".tsv"):
            _convert_columns([row for _, row in cells], column, frozenset(list_columns))
        for line, row in cells:
            self._add(f"line {line} of {self.name}", row.pop(column, None), row)
        if not self._rows:
            raise self._error(f"no row can be used: {self._skipped[0].reason}")

    def _find_file_column(self, columns: Mapping[str, None], expected: str | None) -> str:
        usual = [name for name in FILE_COLUMNS if name in columns]
        column = expected if expected is not None else next(iter(usual), None)
        shown = ", ".join(columns) or "none"
        if column is None or column not in columns:
            what = f"'{expected}'" if expected is not None else f"that names the file ({', '.join(FILE_COLUMNS)})"
            raise self._error(
                f"expected a column {what}, it has {shown:.200}; name the column by data.labels_file_column="
            )
        if len(columns) < 2:
            raise self._error(f"expected columns of labels besides '{column}', it has none")
        return column

    def _add(self, position: str, name: object, cells: Mapping[str, object]) -> None:
        if not isinstance(name, str) or not name or "\0" in name:
            self._skip("", f"{position} names no file")
            return
        key = self._normalize(name)
        if key in self._rows:
            self._skip(name, f"{position} repeats a file of {self._rows[key].position}")
            return
        labels, faults = select_labels(cells)
        for fault in faults:
            self._skip(name, f"unusable label: {fault}, {position}", is_used=True)
        self._rows[key] = _Row(position, labels)

    def _normalize(self, name: str) -> str:
        name = name.replace("\\", "/")
        for root in (self._root, self._root.absolute()):
            name = name.removeprefix(f"{root}/")
        return posixpath.normpath(name)

    def find(self, name: str) -> Labels | None:
        """Return the labels of a recording, given by its path below the root; None if no row names it."""
        keys = [key for key in dict.fromkeys((name, name.rpartition(".")[0])) if key in self._rows]
        self._used |= dict.fromkeys(keys, keys[0]) if keys else {}
        return self._rows[keys[0]].labels if keys else None

    def unused(self) -> Iterator[SkippedInput]:
        """See `LabelReader.unused`."""
        if not self._used:
            raise self._error(
                f"no row names a file of data.root={printable(self._root)}: expected paths below it, as drums/kick.wav,"
                f" the first row has {next(iter(self._rows))!r:.100}"
            )
        yield from self._skipped
        for key, row in self._rows.items():
            path = printable(self._root / key)
            first = self._used.get(key)
            if first is not None and first != key:
                yield SkippedInput(path, "", f"{row.position} repeats a file of {self._rows[first].position}")
            elif first is None and not os.path.exists(self._root / key):  # noqa: PTH110 - false for impossible names
                yield SkippedInput(path, "", f"in {self.name}, not on disk")

    def _skip(self, name: str, reason: str, is_used: bool = False) -> None:
        self._skipped.append(SkippedInput(printable(self._root / name) if name else self.name, "", reason, is_used))

    def _error(self, problem: str) -> InputError:
        return InputError(f"data.labels={printable(self._path)}: {problem}")


def select_labels(cells: Mapping[str, object]) -> tuple[Labels, list[str]]:
    """Return the labels of a row or object without empty ones, and what is wrong with each that cannot be used."""
    labels: Labels = {}
    faults: list[str] = []
    for name, value in cells.items():
        try:
            name.encode()
            label = _parse_label(value)
        except ValueError:
            faults.append(f"{name!r:.50} is not a text, a number or a list of texts")
            continue
        if label is not None and name.strip():
            labels[name.strip()] = label
    return labels, faults


def _parse_label(value: object) -> Label | None:
    """Return a label, None for an empty value. Raises ValueError for other types."""
    if value is None or value != value:  # NaN, which tables have where a number is missing
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) <= 2**53:
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        value.encode()  # ValueError for what is not Unicode
        return value.strip() or None
    if isinstance(value, list) and all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value):
        "".join(value).encode()
        return list(dict.fromkeys(item.strip() for item in value if item.strip())) or None
    raise ValueError


def _read_beside(stem: Path) -> tuple[Labels, list[str]]:
    """Return the labels of the .json and the .txt beside a recording, and what is wrong with them."""
    labels: Labels = {}
    faults: list[str] = []
    for suffix in (".txt", ".json"):
        path = stem.with_name(stem.name + suffix)
        try:
            if not path.is_file():
                continue
            if path.stat().st_size > MAX_BYTES_BESIDE:
                raise ValueError(f"more than {MAX_BYTES_BESIDE:,} bytes")
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text) if suffix == ".json" else {"text": text}
            if not isinstance(content, dict):
                raise ValueError("expected an object of labels")
        except (OSError, ValueError, RecursionError) as error:
            faults.append(f"unusable label: {printable(path.name)} cannot be read: {first_line(error)}")
            continue
        selected, wrong = select_labels(content)
        labels |= selected
        faults += [f"unusable label: {fault} in {printable(path.name)}" for fault in wrong]
    return labels, faults


_Rows = Iterator[tuple[int, dict[str, Any] | str]]  # number of the line, and the row or what is wrong with it


def _read_csv(path: Path) -> _Rows:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count))
        columns = [column.strip() for column in next(rows, [])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"two of its columns have the same name: {', '.join(columns)}")
        for row in rows:
            if len(row) == len(columns):
                yield rows.line_num, dict(zip(columns, row, strict=True))
            elif row:
                yield rows.line_num, f"has {len(row)} columns, expected {len(columns)}"


def _read_jsonl(path: Path) -> _Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield number, row if isinstance(row, dict) else "is not a JSON object"


def _read_parquet(path: Path) -> _Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"data.labels={path}: a parquet file needs pyarrow: `pip install pyarrow`") from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise ValueError(str(error)) from error


def _convert_columns(rows: list[dict[str, Any]], file_column: str, list_columns: frozenset[str]) -> None:
    """Convert the texts of a table: a column of numbers only, and the columns of lists."""
    for column in dict.fromkeys(name for row in rows for name in row if name != file_column):
        if column in list_columns:
            for row in rows:
                row[column] = _SEPARATOR.split(row[column])
        elif all(_NUMBER.fullmatch(row[column].strip()) for row in rows if row[column].strip()):
            for row in rows:
                text = row[column].strip()
                row[column] = None if not text else float(text) if "." in text else int(text)
