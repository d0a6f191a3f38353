"""Hugging Face datasets: local parquet, arrow and audio folders give the same clips; nothing of them is executed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.corpora.clip import Clip
from pipeline.preprocessing.audio_hash import MeasuredDurations
from tests.helpers.corpora import data
from tests.helpers.preprocess_runs import ROOT

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
LABELS = [{"pitch": 60 + i, "family": ("bass", "brass")[i % 2], "tags": ["a", "b"][: i % 2 + 1]} for i in range(4)]


def flac(number: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, 0.3 * np.sin(np.arange(8000) / (9 + number)), 16_000, format="FLAC")
    return content.getvalue()


SOUNDS = [flac(number) for number in range(4)]


def table(numbers: range = range(4)) -> object:
    """Rows with audio, labels, and a column that is no label."""
    value = datasets.Value
    features = datasets.Features(
        audio=datasets.Audio(),
        pitch=value("int64"),
        family=datasets.ClassLabel(names=["bass", "brass"]),
        tags=datasets.List(value("string")),
        extra={"nested": value("int32")},
    )
    rows = [
        {
            **LABELS[i],
            "audio": {"bytes": SOUNDS[i], "path": f"{i}.flac"},
            "family": i % 2,
            "extra": {"nested": 1},
        }
        for i in numbers
    ]
    return pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)


def parquet_files(folder: Path) -> Path:
    from pyarrow import parquet

    folder.mkdir()
    parquet.write_table(table(range(3)), folder / "train-00000-of-00001.parquet")
    parquet.write_table(table(range(3, 4)), folder / "validation-00000-of-00001.parquet")
    return folder


def saved_splits(folder: Path) -> Path:
    splits = {"train": range(3), "validation": range(3, 4)}
    rows = {name: datasets.Dataset(datasets.table.InMemoryTable(table(part))) for name, part in splits.items()}
    datasets.DatasetDict(rows).save_to_disk(folder)
    return folder


def audio_folder(folder: Path) -> Path:
    for i, content in enumerate(SOUNDS):
        split = folder / ("train" if i < 3 else "validation")
        split.mkdir(parents=True, exist_ok=True)
        (split / f"{i}.flac").write_bytes(content)
        with (split / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": f"{i}.flac", **LABELS[i]}) + "\n")
    return folder


def read(tmp_path: Path, *settings: str) -> tuple[list[Clip], list[str]]:
    corpus = data("huggingface", tmp_path / "audio", *settings).open(durations=MeasuredDurations(False))
    clips = list(corpus.clips())
    assert list(corpus.clips()) == clips, "the list is the same each time"
    return clips, [row.reason for row in corpus.skipped]


@pytest.mark.parametrize("write", [parquet_files, saved_splits, audio_folder])
def test_every_format_gives_the_same_clips(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path / "source")
    clips, skipped = read(tmp_path, f"data.path={source}")
    assert [(clip.key, clip.split) for clip in clips] == [
        *((f"train-{i:08d}", "train") for i in range(3)),
        ("validation-00000000", "valid"),
    ]
    assert [Path(clip.path).read_bytes() for clip in clips] == SOUNDS
    assert [clip.labels for clip in clips] == LABELS, "classes have their names"
    assert skipped == []
    in_place = write is audio_folder
    assert all(str(source) in clip.path for clip in clips) == in_place, "local files are not copied"


def test_unchanged_dataset_is_read_once(tmp_path: Path) -> None:
    source = parquet_files(tmp_path / "source")
    before, _ = read(tmp_path, f"data.path={source}")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "audio").rglob("*.*")}
    assert read(tmp_path, f"data.path={source}")[0] == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (source / "validation-00000-of-00001.parquet").unlink()
    after, _ = read(tmp_path, f"data.path={source}", "data.splits={train: train}")
    assert after == before[:3]
    audio = [path for path in times if path.suffix == ".flac"]
    assert {path: path.stat().st_mtime_ns for path in audio} == {path: times[path] for path in audio}


def test_splits_columns_and_segments_are_chosen(tmp_path: Path) -> None:
    source = parquet_files(tmp_path / "source")
    clips, _ = read(
        tmp_path,
        *(f"data.path={source}", "data.splits={validation: test, train: train}", "data.labels=[pitch]"),
        *("data.segment_seconds=0.2", "data.min_seconds=0.05", "data.audio_column=audio"),
    )
    assert [(clip.start, clip.duration) for clip in clips[:3]] == [(0, 0.2), (0.2, 0.2), (0.4, 0.1)]
    assert clips[0].labels == {"pitch": 63} and clips[0].split == "test"
    file = source / "train-00000-of-00001.parquet"
    clips, _ = read(tmp_path, f"data.path={file}", "data.valid=0.4", "data.test=0.3")
    assert len(clips) == 3 and len({clip.split for clip in clips}) > 1, "a single split is divided"


def test_rows_without_audio_are_skipped(tmp_path: Path) -> None:
    """Rows that name files outside of the dataset, too."""
    from pyarrow import parquet

    audio = [
        {"bytes": SOUNDS[0], "path": None},
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": b"", "path": None},
    ]
    features = datasets.Features(audio=datasets.Audio(), mood=datasets.Value("string"))
    rows = [{"audio": cell, "mood": "calm"} for cell in audio]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "a.parquet")
    clips, skipped = read(tmp_path, f"data.path={tmp_path / 'a.parquet'}")
    assert len(clips) == 1
    assert skipped == [
        "no audio: its cell is empty",
        "no audio: /etc/passwd is not a file of the dataset",
        "no audio: its cell is empty",
    ]


def test_unusable_label_is_named_once(tmp_path: Path) -> None:
    from pyarrow import parquet

    features = datasets.Features(audio=datasets.Audio(), mood=datasets.Value("string"))
    rows = [{"audio": {"bytes": SOUNDS[0], "path": None}, "mood": 20_000 * "a"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "a.parquet")
    clips, reported = read(tmp_path, f"data.path={tmp_path / 'a.parquet'}")
    assert [clip.labels for clip in clips] == [{}]
    assert reported == ["unusable label: 'mood' is not a text, a number or a list of texts"]


def test_refused_datasets(tmp_path: Path) -> None:
    source = parquet_files(tmp_path / "source")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.csv").write_text("a,b\n1,2\n")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes((source / "train-00000-of-00001.parquet").read_bytes()[:-40])
    for settings, message in (
        ([], "expected either data.dataset=USER/NAME or data.path=PATH"),
        ([f"data.path={tmp_path / 'gone'}"], r"data\.path=.*gone does not exist"),
        ([f"data.path={texts}"], r"its format is csv, expected one of arrow, audiofolder, parquet"),
        ([f"data.path={damaged}"], r"data\.path=.*damaged\.parquet: "),
        ([f"data.path={texts / 'a.csv'}"], r"expected a folder, or a \.parquet or \.arrow file"),
        ([f"data.path={source}", "data.splits={dev: train}"], r"its splits are train, validation; .*data\.splits="),
        (
            [f"data.path={source}", "data.audio_column=sound"],
            r"a column of audio, data\.audio_column=sound; it has",
        ),
        ([f"data.path={source}", "data.labels=[extra]"], r"data\.labels: 'extra' is not a column of texts"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read(tmp_path, *settings)
        assert "\n" not in str(error.value)


def test_dataset_of_the_hub_without_network_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.preprocess", "data=huggingface", "data.dataset=nobody/nothing"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    settings = ["out=out", "codec=encodec_embedded", "embedder=encodecmae_tiny", "devices=cpu"]
    done = subprocess.run([*command, *settings], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert line.startswith("error: data.dataset=nobody/nothing: it cannot be opened (ConnectionError: ")
