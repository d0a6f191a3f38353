"""`python -m pipeline.compare`: runs on the same clips, with the speed and compute from their logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.evaluation.comparison import FACTS
from pipeline.evaluation.metrics import list_metrics
from pipeline.generation.loaded_run import load_run
from pipeline.models import model_stats
from tests.helpers.trained_run import FRAMES, Workspace, run_command


def test_rows_have_log_and_metrics_of_each_run(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [workspace.run("delay"), workspace.run("flatten", positions=128)]
    rows = [{"step": 10 * i, "train/clips": 80 * i, "speed/codes_per_second": 1000.0 + i} for i in range(1, 6)]
    (runs[1] / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 50, "val/loss": 1}])
    )
    overrides = (
        f"runs=[{runs[0]},{runs[1]}]",
        f"shards={workspace.dataset}",
        "n=2",
        f"out={tmp_path}",
        "benchmark_batch=2",
    )
    run_command("compare", *overrides)
    comparison = json.loads((tmp_path / "compare.json").read_text())
    first, second = comparison["rows"]
    metrics = {*list_metrics()} - {"distance_limit", "coverage", "density"}  # which need more than two sounds
    assert set(first) == {*FACTS, *metrics} and (first["pattern"], second["pattern"]) == ("delay", "flatten")
    assert first["steps"] is None and second["steps"] == 50 and second["training"] == 1003.5
    assert second["petaflop"] == pytest.approx(
        400 * model_stats.training_flops(load_run(runs[1], "cpu").model.config, FRAMES) / 1e15
    )
    assert first["bits"] == comparison["evaluations"][str(runs[0])]["loss"]["model"]["bits_second"]
    assert first["generation"] > 0 and second["generation"] > 0
    lines = (tmp_path / "compare.md").read_text().splitlines()
    assert len(lines) == 4 and "Warning" not in lines[-1] and {line.count("|") for line in lines} == {len(first) + 1}
    out = capsys.readouterr().out
    assert "flatten" in out and "compare.md" in out and "2 runs, 2 clips of valid" in out
    best = min((first, second), key=lambda row: row["bits"])["run"]
    assert out.splitlines()[-1] == f"next: python -m pipeline.report run={best} shards={workspace.dataset}"


def test_runs_with_other_codebooks_give_a_warning(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One codebook has fewer bits per second than two, but is not better: the table and the terminal warn."""
    runs = [workspace.run("delay"), workspace.run("delay", codebooks=1)]
    run_command(
        "compare",
        f"runs=[{runs[0]},{runs[1]}]",
        f"shards={workspace.dataset}",
        "n=64",
        f"out={tmp_path}",
        "benchmark_batch=1",
    )
    comparison = json.loads((tmp_path / "compare.json").read_text())
    rows, clips = comparison["rows"], Manifest.load(workspace.dataset).num_samples("valid")
    assert [results["settings"]["n"] for results in comparison["evaluations"].values()] == [clips, clips] and clips < 64
    assert [row["codebooks"] for row in rows] == [2, 1] and rows[0]["codec"] == rows[1]["codec"] == "encodec_embedded"
    out = capsys.readouterr().out
    assert f"2 runs, {clips} clips of valid" in out, "the number of clips that exist, not of those requested"
    for text in (out, (tmp_path / "compare.md").read_text()):
        assert "the runs differ in codebooks: bits and codes per second count the codes of all codebooks" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark_batch=0"], "benchmark_batch=0: expected a whole number of 1 or more"),
        (["batch=0"], "batch=0: expected auto or a whole number of 1 or more"),
        (["resamples=0"], "resamples=0: expected a whole number of 1 or more"),
        (["temperatures=-1"], "temperatures=-1: expected a list, each a number of 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(
    workspace: Workspace, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_command(
            "compare", f"runs={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path / 'o'}", *overrides
        )
    assert not list(tmp_path.iterdir())


def test_a_run_without_export_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pipeline.export"):
        run_command("compare", f"runs=[{tmp_path}]", f"shards={workspace.dataset}", f"out={tmp_path}")
