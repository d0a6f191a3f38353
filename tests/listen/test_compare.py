"""`python -m pipeline.compare`: runs on the same clips, with what their logs tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.listen.compare import COLUMNS
from pipeline.listen.instrument import open_run
from pipeline.lm import cost
from tests.listen.conftest import FRAMES, Stage, task


def test_a_row_a_run_with_its_log_and_the_same_clips(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [stage.run("delay"), stage.run("flatten", positions=128)]
    rows = [{"step": 10 * i, "train/clips": 80 * i, "speed/codes_per_second": 1000.0 + i} for i in range(1, 6)]
    (runs[1] / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 50, "val/loss": 1}])
    )
    words = (f"runs=[{runs[0]},{runs[1]}]", f"shards={stage.cache}", "n=2", f"out={tmp_path}", "timed=2")
    task("compare", *words)
    found = json.loads((tmp_path / "compare.json").read_text())
    first, second = found["rows"]
    assert set(first) == set(COLUMNS) and (first["pattern"], second["pattern"]) == ("delay", "flatten")
    assert first["steps"] is None and second["steps"] == 50 and second["training"] == 1003.5
    assert second["petaflop"] == pytest.approx(
        400 * cost.operations(open_run(runs[1], "cpu").model.config, FRAMES) / 1e15
    )
    assert first["bits"] == found["evaluations"][str(runs[0])]["loss"]["model"]["bits_second"]
    assert first["generation"] > 0 and second["generation"] > 0
    lines = (tmp_path / "compare.md").read_text().splitlines()
    assert len(lines) == 4 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    told = capsys.readouterr().out
    assert "flatten" in told and "compare.md" in told


def test_a_run_without_export_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pipeline.export"):
        task("compare", f"runs=[{tmp_path}]", f"shards={stage.cache}", f"out={tmp_path}")
