"""The dashboard shows exactly the metrics that training logs, and is saved on W&B's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dashboards import GPU_METRICS, read_metrics, shown_metrics
from tests.helpers.training_caches import K, write_cache
from tests.helpers.wandb_server import Server

pytest.importorskip("wandb_workspaces", reason='the dashboard needs wandb-workspaces: pip install "wandb[workspaces]"')

from pipeline.tracking import dashboard

ROOT = Path(__file__).parents[2]


def command(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"PYTHONPATH": str(ROOT), "HOME": str(cwd), **env}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=clean, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_dashboard_shows_what_a_run_logs(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    small = (f"codec.codebooks={K}", "model=tiny", "model.width=32", "model.layers=1", "model.heads=2")
    few = ("codec=encodec_embedded", "trainer.steps=2", "trainer.log_every=1", "trainer.micro_batch=2", "tracking=none")
    done = command("pipeline.train", f"shards='{cache}'", f"run='{tmp_path / 'run'}'", *small, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row} - {"step"}
    assert shown_metrics(K) <= logged
    assert {name for name in logged if "loss" in name} <= shown_metrics(K)
    over = [row for row in rows if "val/loss" in row]
    assert over and all(row["train/hours"] > 0 and row["train/epoch"] > 0 for row in over)
    trainer = (ROOT / "pipeline" / "training" / "trainer.py").read_text()
    assert all(f'"{name}"' in trainer for name in GPU_METRICS)


def test_dry_run_needs_no_key(tmp_path: Path) -> None:
    done = command("pipeline.dashboard", "dry_run=true", "codebooks=3", "project=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    specification = json.loads((tmp_path / "dashboard.json").read_text())
    assert specification["project"] == "mine"
    names = read_metrics(specification)
    assert "val/loss/codebook_3" in names and "val/loss/codebook_4" not in names
    assert dashboard.AUDIO_TABLE in json.dumps(specification) and '"pattern.value"' in json.dumps(specification)


def test_workspace_is_created_and_updated(tmp_path: Path) -> None:
    server = Server()
    done = command("pipeline.dashboard", "entity=lab", "codebooks=2", cwd=tmp_path, **server.environment)
    assert done.returncode == 0, done.stderr
    (view,) = server.views.values()
    spec = json.loads(view["spec"])
    assert "val/loss/codebook_2" in read_metrics(spec) and view["entityName"] == "lab"
    address = done.stdout.split()[-1]
    arguments = (f"update_url='{address}'", "codebooks=4", "entity=lab")
    done = command("pipeline.dashboard", *arguments, cwd=tmp_path, **server.environment)
    assert done.returncode == 0, done.stderr
    (view,) = server.views.values()
    assert "val/loss/codebook_4" in read_metrics(json.loads(view["spec"]))
    server.shutdown()


def test_missing_key_is_one_line(tmp_path: Path) -> None:
    done = command("pipeline.dashboard", "entity=lab", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no W&B key")
    done = command("pipeline.dashboard", "entity=lab", cwd=tmp_path, WANDB_API_KEY="short")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
