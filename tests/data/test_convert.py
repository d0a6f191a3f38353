"""Conversion to formats of other programs: each reads back what our reader reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.data.formats import FORMATS, huggingface, lhotse
from pipeline.data.labels import LabelCounter
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter, read_shard
from pipeline.shards import main, positional_to_overrides
from tests.helpers.caches import CODEC, EMBEDDER, K, P

LABELS: list[dict[str, Any]] = [
    {"pitch": 60, "family": "brass", "mood": ["calm", "dark"], "tempo": 120.5},
    {"pitch": 61, "family": 7, "mood": []},
    {},
]
Clips = dict[tuple[str, str], tuple[np.ndarray, np.ndarray, float, dict[str, Any]]]


def write_dataset(folder: Path, with_vocabularies: bool = True) -> Path:
    """Write 2 splits of clips of several lengths, with and without labels, in shards of 3."""
    folder.mkdir()
    counter, splits, draw = LabelCounter(), {}, np.random.default_rng(0)
    for split, shards in (("train", 3), ("valid", 1)):
        for number in range(shards):
            with ShardWriter(folder, f"{split}-{number:06d}.tar") as shard:
                for i, labels in enumerate(LABELS):
                    frames = 5 + number + i
                    codes = draw.integers(0, 1024, (K, frames)).astype("<u2")
                    metadata = {"path": f"{number}.wav", "start": 0.5, "duration": (frames - 0.5) / 75, "split": split}
                    metadata |= {"labels": labels} if labels else {}
                    prompt = draw.normal(size=P).astype("<f2")
                    shard.add(Sample(f"{split}-{number}-{i}", codes, prompt, metadata))
                    counter.add(labels)
            splits.setdefault(split, []).append(shard.info)
    labels = counter.vocabularies() if with_vocabularies else {}
    Manifest(CODEC, EMBEDDER, {}, splits, labels=labels).save(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "shards")


def convert(dataset: Path, name: str, out: Path) -> int:
    """Run `python -m pipeline.shards convert` in this process."""
    code: int = main.task(positional_to_overrides(["convert", str(dataset), f"to={name}", f"out='{out}'"]))  # type: ignore[attr-defined]
    return code


def expected(dataset: Path) -> Clips:
    """What our reader reads, with labels as the vocabularies have them."""
    clips: Clips = {}
    for split, shards in Manifest.load(dataset).splits.items():
        for shard in shards:
            for sample in read_shard(dataset / shard.name):
                labels = dict.fromkeys(("family", "mood", "pitch", "tempo")) | sample.metadata.get("labels", {})
                labels["family"] = labels["family"] and str(labels["family"])
                seconds = sample.metadata["duration"]
                clips[split, sample.key] = (sample.codes, sample.prompt, seconds, labels)
    return clips


def by_datasets(out: Path) -> Iterator[tuple[tuple[str, str], tuple[Any, ...]]]:
    """Clips as Hugging Face's `datasets` reads them."""
    datasets = pytest.importorskip("datasets")
    for split, rows in datasets.load_dataset(str(out), cache_dir=str(out.parent / "cache")).items():
        assert rows.features["codes"].feature.feature.dtype == "uint16"
        for row in rows:
            assert row["split"] == split and row["start"] == 0.5 and row["source"].endswith(".wav")
            yield (split, row["key"]), (np.array(row["codes"]), row["prompt"], row["seconds"], row["labels"])


def by_numpy(out: Path) -> Iterator[tuple[tuple[str, str], tuple[Any, ...]]]:
    """Clips as NumPy reads them."""
    for file in out.glob("*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            codes, prompt = np.load(out / row["codes"]), np.load(out / row["prompt"])
            assert codes.dtype == np.uint16 and codes.shape[1] == row["frames"] and row["split"] == file.stem
            yield (file.stem, row["key"]), (codes, prompt, row["seconds"], row["labels"])


def by_lhotse(out: Path) -> Iterator[tuple[tuple[str, str], tuple[Any, ...]]]:
    """Clips as lhotse reads them."""
    lhotse = pytest.importorskip("lhotse")
    for split in ("train", "valid"):
        for cut in lhotse.CutSet.from_shar(in_dir=out / split):
            (supervision,) = cut.supervisions
            codes = cut.load_codes().T
            assert codes.dtype == np.uint16 and cut.codes.frame_shift == pytest.approx(1 / 75)
            assert supervision.duration == pytest.approx(cut.seconds) and cut.duration >= cut.seconds
            left, right = (part.load_codes().T for part in cut.split(3 / 75))
            assert np.array_equal(left, codes[:, :3]) and np.array_equal(right, codes[:, 3:])
            yield (split, cut.id), (codes, cut.load_prompt(), cut.seconds, supervision.custom)


READERS = {"huggingface": by_datasets, "npy": by_numpy, "lhotse": by_lhotse}


@pytest.mark.parametrize("name", READERS)
def test_other_programs_read_the_same_clips(
    dataset: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes, prompts, seconds and labels, over several row groups, files and shards."""
    monkeypatch.setattr(huggingface, "GROUP_BYTES", 100)
    monkeypatch.setattr(huggingface, "FILE_BYTES", 200)
    monkeypatch.setattr(lhotse, "SHARD_SIZE", 4)
    out = tmp_path / "an out"
    assert convert(dataset, name, out) == 0
    printed = capsys.readouterr().out
    assert f"wrote 9 train, 3 valid clips as {name}" in printed and "read it: " in printed
    clips, ours = dict(READERS[name](out)), expected(dataset)
    assert clips.keys() == ours.keys()
    for key, (codes, prompt, seconds, labels) in ours.items():
        assert np.array_equal(clips[key][0], codes) and np.array_equal(clips[key][1], prompt.astype("f4"))
        assert clips[key][2] == pytest.approx(seconds) and clips[key][3] == labels
    description = json.loads((out / "dataset.json").read_text())
    assert description["codec"]["frame_rate"] == 75 and description["splits"] == {"train": 9, "valid": 3}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_each_format_is_tested() -> None:
    assert {*READERS} == {*FORMATS.names()} & {*READERS} and len(READERS) == 3


def test_labels_of_an_older_manifest_are_counted(tmp_path: Path) -> None:
    """Its shards have labels that the manifest does not list."""
    dataset = write_dataset(tmp_path / "shards", with_vocabularies=False)
    assert convert(dataset, "npy", tmp_path / "out") == 0
    assert {key: clip[3] for key, clip in by_numpy(tmp_path / "out")} == {
        key: clip[3] for key, clip in expected(dataset).items()
    }


@pytest.mark.parametrize("name", READERS)
def test_damaged_shard_leaves_nothing(dataset: Path, tmp_path: Path, name: str) -> None:
    """One changed bit in the last shard: the conversion is refused by the shard's name, and no folder is left."""
    copy = write_dataset(tmp_path / "shards")
    shard = copy / "valid-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"valid-000000\.tar has changed since it was written"):
        convert(copy, name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_wrong_settings_are_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    monkeypatch.setitem(sys.modules, "lhotse", None)
    for name, out, message in (
        ("npi", tmp_path / "out", r"to=npi: .*npy"),
        ("npy", tmp_path / "full", r"out=\S+/full: the folder is not empty; give a new one"),
        ("npy", "auto", r"out=auto: convert needs a folder"),
        ("null", tmp_path / "out", r"to=null: expected huggingface, lhotse, npy"),
        ("lhotse", tmp_path / "out", r"lhotse.*pip install 'codec-audio-lm\[lhotse\]'"),
    ):
        with pytest.raises(InputError, match=message):
            convert(dataset, name, Path(out))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_remains_of_a_killed_conversion_are_replaced(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / "train").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    assert convert(dataset, "npy", tmp_path / "out") == 0
    assert len([*by_numpy(tmp_path / "out")]) == 12 and [path.name for path in tmp_path.iterdir()] == ["out"]
