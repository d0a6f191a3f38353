"""Tracking with a W&B server that is up, has outages, or is reached only by a later sync."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training_caches import write_cache
from tests.helpers.wandb_server import Server, sync
from tests.tracking.test_tracking import NO_CODE, ROOT, track

# these depend on timeouts of W&B's processes, so the machine must not be busy
pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[Server]:
    wandb_server = Server()
    yield wandb_server
    wandb_server.shutdown()
    wandb_server.server_close()


def steps_of(server: Server, name: str = "train/loss") -> list[int]:
    """The steps of the one run that the server knows, in the order of its history, of rows that have a name."""
    (run,) = server.runs
    return [row["trainer/step"] for row in server.rows(run) if name in row]


def longest_call(said: str) -> float:
    match = re.search(r"longest call: ([\d.]+) s", said)
    assert match, said
    return float(match[1])


def out_of_service(server: Server, refusals: float) -> None:
    """Take the server down once it has a run, until it has refused `refusals` requests."""

    def outage() -> None:
        while not server.runs:
            time.sleep(0.01)
        time.sleep(1)
        server.down = True
        while server.refused < refusals:
            time.sleep(0.05)
        server.down = False

    threading.Thread(target=outage, daemon=True).start()


def test_online_run_and_its_requeue(server: Server, tmp_path: Path) -> None:
    """One run, rows once each and in order, lineage, sounds, the log, an alert; no call waits for the server."""
    run, cache = tmp_path / "delay_gpt2", write_cache(tmp_path / "nsynth")
    actions = (f"cache:{cache}", "rows:3", "listen", "checkpoint", "nan", "finish:75")
    said = track(run, 0, "--", *actions, env=server.environment)
    assert longest_call(said) < 0.5
    (number,) = server.runs
    run_record = server.run(number)
    assert run_record["displayName"] == run_record["groupName"] == "delay_gpt2"
    assert set(run_record["tags"]) == {"delay", "gpt2", "encodec_24khz"}
    assert run_record["config"]["optim.lr"]["value"] == 1e-4 and run_record["ended"] == 75 and run_record["preempting"]
    track(run, 40, "--", "rows:2", "export", "finish:0", env=server.environment)
    assert steps_of(server) == [10, 20, 30, 40, 50, 60] and server.run(number)["ended"] == 0
    assert [alert["title"] for alert in server.alerts] == ["The loss is not finite"]
    artifacts = {a["name"]: a for a in server.artifacts.values()}
    assert run_record["config"]["dataset.nsynth"]["value"]["splits"]["train"]["clips"] == 45
    assert all(a["committed"] for a in server.artifacts.values())
    assert {f"checkpoint-{number}", f"export-{number}"} < set(artifacts)
    assert any(name.endswith("/pipeline/train.py") for name in server.files), "the code that ran"
    assert sum(name.endswith(".wav") for name in server.files) == 2
    assert sum(name.endswith(".png") for name in server.files) == 1, "one picture in two places"
    assert server.files[f"{number}/log.txt"] == b"a log\n"


def test_outage_that_ends_loses_nothing(server: Server, tmp_path: Path) -> None:
    out_of_service(server, 3)
    actions = ("rows:100", "sleep:5", "rows:10", "finish:0")
    said = track(tmp_path / "run", 0, NO_CODE, "--", *actions, env=server.environment)
    assert server.refused >= 3 and not server.down
    assert longest_call(said) < 0.5 and "failed" not in said
    assert steps_of(server) == list(range(10, 1110, 10))


def test_outage_at_start_leaves_an_offline_run(server: Server, tmp_path: Path) -> None:
    server.down = True
    run = tmp_path / "a run"
    said = track(run, 0, "tracking.timeout_seconds=20", NO_CODE, "--", "rows:5", "finish:75", env=server.environment)
    assert said.count("W&B cannot be reached, so this run is stored offline") == 1 and longest_call(said) < 0.5
    server.down = False
    assert "wandb sync --yes" in said
    assert sync(server, run).returncode == 0
    assert steps_of(server) == [10, 20, 30, 40, 50]
    track(run, 50, NO_CODE, "--", "rows:1", "finish:0", env=server.environment)
    assert steps_of(server) == [10, 20, 30, 40, 50, 60], "and its requeue continues it online"


def test_endless_outage_loses_nothing(server: Server, tmp_path: Path) -> None:
    out_of_service(server, math.inf)
    run = tmp_path / "run"
    actions = ("rows:5", "sleep:4", "rows:5", "finish:75")
    said = track(run, 0, "tracking.timeout_seconds=3", NO_CODE, "--", *actions, env=server.environment)
    assert server.down
    server.down = False
    command = re.search(r"wandb sync --yes --include-online .*", said)
    assert command, said
    env = {**os.environ, **server.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command[0], shell=True, env=env, check=True, timeout=60, stdin=subprocess.DEVNULL)
    assert steps_of(server) == list(range(10, 110, 10))


@pytest.mark.parametrize("end", ["finish:75", "finish:0"])
def test_hanging_server_does_not_hang_the_exit(server: Server, tmp_path: Path, end: str) -> None:
    """It accepts connections and answers nothing."""

    def hang() -> None:
        while not server.runs:
            time.sleep(0.01)
        server.hangs = True

    threading.Thread(target=hang, daemon=True).start()
    actions = ("rows:5", "sleep:8", "rows:5", end)
    said = track(tmp_path / "run", 0, "tracking.timeout_seconds=3", NO_CODE, "--", *actions, env=server.environment)
    server.hangs = False
    assert longest_call(said) < 0.5 and "W&B was stopped after" in said and "wandb sync --yes --include-online" in said


def test_invalid_key_leaves_an_offline_run(tmp_path: Path) -> None:
    said = track(tmp_path / "run", 0, NO_CODE, "--", "rows:1", "finish:0", env={"WANDB_API_KEY": "short"})
    assert "stored offline" in said and [*(tmp_path / "run").glob("wandb/offline-run-*")]


def test_offline_restarts_sync_to_one_run(server: Server, tmp_path: Path) -> None:
    """Two runs side by side; the sync in the middle of the night, and the one the day after."""
    runs = [tmp_path / "one run", tmp_path / "another"]
    for at in (0, 20):
        for run in runs:
            track(run, at, "tracking.mode=offline", NO_CODE, "--", "rows:2", "finish:75")
        done = sync(server, tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(server.runs) == 2
    for run in runs:
        number = (run / "wandb_id").read_text().strip()
        steps = [row["trainer/step"] for row in server.rows(number) if "train/loss" in row]
        assert steps == [10, 20, 30, 40]
    history = {name: dict(run_record["history"]) for name, run_record in server.runs.items()}
    assert sync(server, *runs).returncode == 0
    assert {name: run_record["history"] for name, run_record in server.runs.items()} == history, "nothing is sent twice"


def test_killed_offline_start_is_synced_once(server: Server, tmp_path: Path) -> None:
    """W&B's file of it is incomplete: the starts after it are uploaded, and no sync repeats its rows."""
    run = tmp_path / "run"
    track(run, 0, "tracking.mode=offline", NO_CODE, "--", "rows:2", "finish:75")
    track(run, 20, "tracking.mode=offline", NO_CODE, "--", "rows:2", "sleep:8", "die", code=-9)
    track(run, 30, "tracking.mode=offline", NO_CODE, "--", "rows:2", "finish:0")
    for _ in range(2):
        assert sync(server, run).returncode == 0
        steps = steps_of(server)
        assert steps == sorted(set(steps)) and steps[-1] == 50


def test_offline_artifacts_sync_from_any_folder(server: Server, tmp_path: Path) -> None:
    """Paths were relative, and a checkpoint was deleted before the sync: every artifact is committed."""
    write_cache(tmp_path / "nsynth")
    actions = ("cache:nsynth", "rows:2", "listen", "checkpoint", "rows:1", "checkpoint", "export", "finish:0")
    track(Path("run"), 0, "tracking.mode=offline", "--", *actions, cwd=tmp_path)
    shutil.rmtree(tmp_path / "run/checkpoints/step-20")
    assert sync(server, tmp_path / "run").returncode == 0
    states = [(artifact["name"].partition("-")[0], artifact["committed"]) for artifact in server.artifacts.values()]
    assert sorted(states) == [(name, True) for name in ("checkpoint", "checkpoint", "code", "export", "run")], (
        "two checkpoints; run: the sounds; the dataset is in the config only"
    )
    assert any(name.endswith("/log.txt") for name in server.files)


def test_sync_without_runs(server: Server, tmp_path: Path) -> None:
    assert sync(server).returncode == 2
    nothing = sync(server, tmp_path)
    assert nothing.returncode == 0 and "no W&B runs" in nothing.stdout


def test_sync_without_server_fails(server: Server, tmp_path: Path) -> None:
    track(tmp_path / "run", 0, "tracking.mode=offline", NO_CODE, "--", "rows:1", "finish:0")
    server.server_close()
    wrong: dict[str, Any] = {**os.environ, **server.environment, "WANDB_API_KEY": "short"}
    wrong["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "jobs" / "sync_wandb.sh"), str(tmp_path)],
        env=wrong,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
