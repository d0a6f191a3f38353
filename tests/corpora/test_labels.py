"""Labels of a folder: from a table, from files beside the recordings, from names of folders; faults are named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from pipeline.common.errors import InputError
from pipeline.corpora import SkippedInput
from tests.helpers.corpora import data
from tests.helpers.damage import damaged, inside, refused_or_right, seeds, some

ROWS = [
    {"file_name": "piano/calm/1.wav", "pitch": 60, "gain": 0.5, "tags": ["soft", "dark"], "code": "007"},
    {"file_name": "piano/wild/2.flac", "pitch": 61, "gain": -1.5, "tags": ["loud"], "code": "12"},
    {"file_name": "drums/3", "pitch": None, "gain": 2.0, "tags": [], "code": "x"},
]
NAMES = ("piano/calm/1.wav", "piano/wild/2.flac", "drums/3.mp3")


FOLDER = data("folder", Path("unused"), "data.labels_beside=true")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
    return tmp_path / "sounds"


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path = path.with_suffix(".tsv" if delimiter == "\t" else ".csv")
    lines = [delimiter.join(rows[0])]
    for row in rows:
        cells = [
            ";".join(cell) if isinstance(cell, list) else "" if cell is None else str(cell) for cell in row.values()
        ]
        lines.append(delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in cells))
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = path.with_suffix(".parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(root: Path, *settings: str) -> tuple[dict[str, dict], list[SkippedInput]]:
    """The labels by path below the root, and what was skipped."""
    corpus = data("folder", root, *settings).open()
    clips = list(corpus.clips())
    skipped = corpus.skipped[:]
    assert list(corpus.clips()) == clips and corpus.skipped == skipped, "the list is the same each time"
    return {clip.path.removeprefix(f"{root}/"): clip.labels for clip in clips}, skipped


WRITERS: dict[str, Callable[[Path, list[dict]], Path]] = {
    "comma": write_csv,
    "semicolon": lambda path, rows: write_csv(path, [{**row, "tags": ",".join(row["tags"])} for row in rows], ";"),
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_table_gives_the_same_labels(root: Path, kind: str) -> None:
    """Numbers are numbers, 007 is a name, empty cells are no labels, and a name needs no suffix."""
    table = WRITERS[kind](root.parent / "labels", ROWS)
    labels, skipped = read(root, f"data.labels={table}", "data.labels_list_columns=[tags]")
    assert labels == {
        "piano/calm/1.wav": {"pitch": 60, "gain": 0.5, "tags": ["soft", "dark"], "code": "007"},
        "piano/wild/2.flac": {"pitch": 61, "gain": -1.5, "tags": ["loud"], "code": "12"},
        "drums/3.mp3": {"gain": 2.0, "code": "x"},
    }
    assert type(labels["piano/calm/1.wav"]["pitch"]) is int
    assert skipped == []


def test_rows_and_files_that_do_not_match_are_named(root: Path) -> None:
    rows = [*ROWS[:2], {**ROWS[0], "code": "second"}, {**ROWS[0], "file_name": "gone.wav"}]
    rows += [{**ROWS[0], "file_name": "piano/calm/1"}, {**ROWS[0], "file_name": None}]
    table = write_jsonl(root / "table", rows)
    table.write_text(table.read_text() + "{broken\n")
    labels, skipped = read(root, "data.labels=table.jsonl")
    assert labels["piano/calm/1.wav"]["code"] == "007", "the first row counts"
    assert labels["drums/3.mp3"] == {}
    assert {(row.path.removeprefix(f"{root}/"), row.reason, row.is_used) for row in skipped} == {
        ("drums/3.mp3", "no label: not in table.jsonl", True),
        ("gone.wav", "in table.jsonl, not on disk", False),
        ("piano/calm/1.wav", "line 3 of table.jsonl repeats a file of line 1 of table.jsonl", False),
        ("piano/calm/1", "line 5 of table.jsonl repeats a file of line 1 of table.jsonl", False),
        ("table.jsonl", "line 6 of table.jsonl names no file", False),
        ("table.jsonl", "line 7 of table.jsonl is not a JSON object", False),
    }


def test_unusable_label_leaves_the_others(root: Path) -> None:
    rows = [{**row, "extra": {"nested": 1} if row is ROWS[0] else "fine"} for row in ROWS]
    labels, skipped = read(root, f"data.labels={write_jsonl(root / 'table', rows)}")
    assert "extra" not in labels["piano/calm/1.wav"] and labels["piano/calm/1.wav"]["pitch"] == 60
    ((path, _, reason, is_used),) = skipped
    assert path == f"{root}/piano/calm/1.wav" and is_used
    assert reason == "unusable label: 'extra' is not a text, a number or a list of texts, line 1 of table.jsonl"


def test_names_of_folders_are_labels(root: Path) -> None:
    labels, skipped = read(root, "data.labels_from_folders=[instrument,mood]")
    assert labels == {
        "piano/calm/1.wav": {"instrument": "piano", "mood": "calm"},
        "piano/wild/2.flac": {"instrument": "piano", "mood": "wild"},
        "drums/3.mp3": {"instrument": "drums"},
    }
    assert [(row.path, row.reason) for row in skipped] == [
        (f"{root}/drums/3.mp3", "no label: in no folder that names its mood")
    ]


def test_files_beside_win_over_table_and_folders(root: Path) -> None:
    (root / "piano/calm/1.json").write_text(
        json.dumps({"mood": "sad", "bpm": 90, "empty": "", "tags": ["a", "a", " "]})
    )
    (root / "piano/calm/1.txt").write_text("a slow piece\n")
    (root / "piano/wild/2.json").write_text("[1]")
    table = write_jsonl(root / "table", [{"file": "piano/calm/1.wav", "mood": "calm", "key": "C"}])
    labels, skipped = read(
        root, f"data.labels={table}", "data.labels_beside=true", "data.labels_from_folders=[instrument,mood]"
    )
    assert labels["piano/calm/1.wav"] == {
        **{"instrument": "piano", "mood": "sad", "key": "C", "bpm": 90, "tags": ["a"], "text": "a slow piece"}
    }
    assert labels["piano/wild/2.flac"] == {"instrument": "piano", "mood": "wild"}
    assert "unusable label: 2.json cannot be read: expected an object of labels" in {row.reason for row in skipped}


REFUSED = {
    "a.txt": ("file_name,x\na,1\n", r"a\.txt: expected a \.csv, \.tsv, \.jsonl or \.parquet file"),
    "none.csv": (None, r"none\.csv: expected a \.csv"),
    "other.csv": (
        "id,mood\n1,calm\n",
        r"expected a column that names the file \(file_name, .*it has id, mood; name",
    ),
    "only.csv": ("file_name\n1.wav\n", r"expected columns of labels besides 'file_name'"),
    "twice.csv": ("file_name,a,a\n1.wav,1,2\n", r"two of its columns have the same name"),
    "empty.csv": ("file_name,a\n", r"no row can be used: it has none"),
    "rows.csv": ("file_name,a\n1.wav,1,2\n", r"no row can be used: line 2 of rows\.csv has 3 columns, expected 2"),
    "latin.csv": ("file_name,a\n1.wav,\udce9\n", r"it cannot be read: .*utf-8"),
    "lines.jsonl": ("{\n", r"no row can be used: line 1 of lines\.jsonl is not a JSON object"),
    "bytes.parquet": ("PAR1", r"it cannot be read: "),
    "unmatched.csv": ("file_name,a\nx.wav,1\n", r"no row names a file of data\.root=.* the first row has 'x\.wav'"),
    "nameless.csv": ("file_name,a\n,1\n", r"no row can be used: line 2 of nameless\.csv names no file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_table_of_other_columns_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=rf"^data\.labels=.*{message}"):
        list(data("folder", root, f"data.labels={tmp_path / name}").open().clips())
    if name == "other.csv":
        with pytest.raises(InputError, match=r"expected a column 'file', it has id, mood"):
            data("folder", root, f"data.labels={tmp_path / name}", "data.labels_file_column=file").open()


@pytest.mark.parametrize("kind", ["comma", "jsonl", "parquet", "beside"])
@some(60)
@given(seed=seeds)
def test_damaged_labels(root: Path, kind: str, seed: int) -> None:
    """Damaged bytes are refused in one line, or give labels that JSON can hold; nothing else is read or written."""
    table, beside = None, root / "piano" / "calm" / "1.json"
    if kind == "beside":
        beside.write_bytes(damaged(seed, [json.dumps(ROWS[0]).encode()]))
    else:
        table = WRITERS[kind](root.parent / "labels", random.Random(seed).sample(ROWS, 3))
        table.write_bytes(damaged(seed, [table.read_bytes()]))
    settings = FOLDER.model_copy(
        update={"root": str(root), "scan_cache_dir": str(root.parent / "cache"), "labels": table and str(table)}
    )
    with inside(root.parent), refused_or_right("" if kind == "beside" else "data.labels="):
        opened = settings.open()
        for clip in opened.clips():
            json.dumps(clip.labels, allow_nan=False).encode()
        for row in opened.skipped:
            (row.path + row.reason).encode()
