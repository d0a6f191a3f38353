"""Metrics, analyses and report sections from outside the package: the examples of docs/extending.md in commands."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.helpers.trained_run import Workspace
from tests.helpers.warm_python import run_python

ROOT = Path(__file__).parents[2]
PROGRAM = """
from tests.helpers.trained_run import run_command
small = ["n=2", "temperatures=[1]", "plugins=[loudness,brightness,without_prompt]"]
run_command("evaluate", "run={run}", "shards={shards}", "out=e", "resamples=10", "analyses=[brightness]", *small)
run_command("compare", "runs=[{run}]", "shards={shards}", "out=c", "resamples=10", "benchmark_batch=1", *small)
run_command("report", "run={run}", "evaluation=e/evaluate.json", "out=r.html", "num_interpolations=0", *small)
"""


def test_plugins_are_in_every_table_and_page(workspace: Workspace, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    for name in ("loudness", "brightness", "without_prompt"):
        (code,) = re.findall(rf"^```py\n# {name}\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        (tmp_path / f"{name}.py").write_text(code)
    program = PROGRAM.replace("{run}", str(workspace.run())).replace("{shards}", str(workspace.dataset))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "COLUMNS": "80"}
    done = run_python(["-c", program], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "e" / "evaluate.json").read_text())
    assert set(result["temperatures"]["1"]["loudness"]) == {"mean", "interval", "n"}
    assert result["ceiling"]["loudness"]["mean"] == 0 and "loudness" not in result["floor"]
    assert done.stdout.count("loudness (dB off) ↓") == 2, "in the tables of evaluate and compare"
    tables = [line for line in done.stdout.splitlines() if line[:1] in "│┃┏└"]
    assert max(map(len, tables)) <= 80
    row = json.loads((tmp_path / "c" / "compare.json").read_text())["rows"][0]
    assert row["loudness"] == result["temperatures"]["1"]["loudness"]
    assert "loudness (dB off) ↓" in (tmp_path / "c" / "compare.md").read_text()
    page = (tmp_path / "r.html").read_text()
    analysis = result["analyses"]["brightness"]
    assert [*analysis["rows"]] == ["codec", "temperature 1"] and analysis["text"] in done.stdout
    assert analysis["title"] in page and analysis["text"] in page
    assert "loudness (dB off) ↓" in page and "Generated without prompt." in page and "seed 1" in page
