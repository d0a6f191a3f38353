"""Labels of a folder reach the samples and the manifest, and a change of a label is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.data.manifest import Manifest
from pipeline.data.shard import read_shard
from pipeline.data.stats import dataset_stats
from pipeline.data.storage import open_storage
from tests.helpers.preprocess_runs import contents, make, tones


def labels(out: Path) -> dict[str, dict]:
    """The labels in the samples, by the path of the recording."""
    samples = [sample for tar in sorted(out.glob("*.tar")) for sample in read_shard(tar)]
    return {sample.metadata["path"]: sample.metadata["labels"] for sample in samples}


def test_labels_from_csv_to_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tones(tmp_path / "in", 14, 0.1), tmp_path / "out"
    soundfile.write(root / "broken.wav", np.full(100, np.nan), 24_000, subtype="FLOAT")
    assert make("folder", root, out) == 0
    unlabeled = contents(out)
    assert not any(b'"labels": {"' in content for content in unlabeled.values())

    names = sorted(path.name for path in root.iterdir())
    rows = [f"{name},{60 + i % 2},{'low' if i < 7 else 'high'}" for i, name in enumerate(names[:-1])]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,pitch,register", *rows, "gone.wav,1,low"]))
    capsys.readouterr()
    assert make("folder", root, out, f"data.labels={table}") == 0
    expected = {name: {"pitch": 60 + i % 2, "register": "low" if i < 7 else "high"} for i, name in enumerate(names)}
    expected[names[-1]] = {}
    assert labels(out) == {name: of for name, of in expected.items() if name != "broken.wav"}
    manifest = Manifest.load(out)
    assert manifest.labels["pitch"].values == {"60": 6, "61": 7}, "the counts are those of the samples"
    assert manifest.labels["register"].clips == 13
    assert [(row["path"], row["reason"]) for row in manifest.adjusted] == [
        (f"{root}/{names[-1]}", "no label: not in labels.csv")
    ]
    assert {row["reason"] for row in manifest.skipped} >= {"in labels.csv, not on disk"}
    printed = capsys.readouterr().out
    assert "labels: pitch (2 values), register (2 values)" in printed
    assert "adjusted: 1 inputs (1 no label); manifest.json names them all" in printed
    assert "register: high 7, low 6" in [*dataset_stats(open_storage(out))]

    before = {path: content for path, content in contents(out).items() if path.endswith(".tar")}
    assert make("folder", root, out, f"data.labels={table}") == 0
    assert "nothing to do" in capsys.readouterr().out
    table.write_text(table.read_text().replace(f"{names[1]},61,low", f"{names[1]},72,low"))
    assert make("folder", root, out, f"data.labels={table}") == 0
    assert labels(out)[names[1]] == {"pitch": 72, "register": "low"}
    after = {path: content for path, content in contents(out).items() if path.endswith(".tar")}
    assert sum(before[path] != after[path] for path in before) == 1, "only the shard of the clip is encoded again"

    assert make("folder", root, out) == 0
    assert contents(out) == unlabeled, "without labels, the dataset is that of before"
