"""Tracking: `metrics.jsonl`, and one offline W&B run for all restarts; errors never stop training."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.common.metrics_file import read_metrics
from pipeline.config.cli import load_settings, overridden_settings
from pipeline.tracking.background_worker import BackgroundWorker
from pipeline.tracking.base import TrackedRun, Tracker, TrackerSettings
from pipeline.tracking.run_tracker import build_tracker
from pipeline.tracking.trackers.wandb import WandbSettings
from pipeline.training.settings import TrainSettings
from tests.helpers.training_caches import write_cache
from tests.helpers.wandb_server import Server, sync
from tests.helpers.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
NO_CODE = "tracking.code=false"


def track(run: Path, step: int, *actions: str, env: dict[str, str] | None = None, code: int = 0, **options: Any) -> str:
    """Track a simulated training in a separate process, and return its output; with options of its own, not a fork."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folder = options.pop("cwd", ROOT)
    clean |= {"HOME": str((folder / run).parent), "PYTHONPATH": str(ROOT), **(env or {})}
    command = ["-m", "tests.helpers.tracked_run", str(run), str(step), *actions]
    if options:
        options |= {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 120}
        done = subprocess.run([sys.executable, *command], env=clean, cwd=folder, **options)
        returncode, output = done.returncode, done.stdout
    else:
        with tempfile.NamedTemporaryFile() as file:
            process = WarmPython(command, Path(file.name), env=clean, cwd=folder)
            returncode, output = process.wait(), Path(file.name).read_text()
    assert returncode == code, output
    return output


class Uploaded(NamedTuple):
    """A run folder whose offline runs were synced."""

    run: Path
    output: str  # of the last start
    server: Server

    @property
    def record(self) -> dict[str, Any]:
        """What the server has of its only run."""
        (name,) = self.server.runs
        return self.server.run(name)

    @property
    def rows(self) -> list[dict[str, Any]]:
        (name,) = self.server.runs
        return self.server.rows(name)


def upload(run: Path, output: str = "") -> Uploaded:
    """Sync a run folder to a new server."""
    server = Server()
    done = sync(server, run)
    assert done.returncode == 0, done.stderr
    return Uploaded(run, output, server)


def offline_runs(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*"))


def jsonl(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def requeued(tmp_path_factory: pytest.TempPathFactory) -> Uploaded:
    """A run that ended after step 40, resumed from step 20, and was stopped; synced without its checkpoint."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    write_cache(folder / "nsynth")
    run = Path("delay gpt2")  # a relative path, as most people type it
    actions = ("rows:4", "logged")  # ends without a word
    track(run, 0, "tracking.mode=offline", "--", "cache:nsynth", *actions, cwd=folder)
    actions = ("rows:4", "nan", "nan", "listen", "checkpoint", "export", "finish:75")
    output = track(run, 20, "tracking.mode=offline", "--", "cache:nsynth", *actions, cwd=folder)
    shutil.rmtree(folder / run / "checkpoints")  # as retention does
    return upload(folder / run, output)


def local_tracker(run: Path, step: int) -> Tracker:
    """The tracker of a run with tracking=none."""
    return build_tracker(tracker_settings("tracking=none"), TrackedRun(run, step, "name", {}))


def test_rows_after_the_resumed_step_are_dropped(requeued: Uploaded) -> None:
    steps = [row["step"] for row in jsonl(requeued.run)]
    assert steps == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50, 60, 60, 70, 80]


def test_incomplete_row_is_dropped_and_nan_is_null(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    tracker = local_tracker(tmp_path, 5)
    tracker.log(6, {"train/loss": float("nan"), "train/lr": 1e-4})
    tracker.close()
    assert jsonl(tmp_path) == [{"step": 1, "a": 2}, {"step": 6, "train/loss": None, "train/lr": 1e-4}]


@pytest.mark.parametrize(
    "end",
    [
        b'{"step": 3, "a": 1}\n{"step": 2, "train/l\xff\xfe\xc3',
        b'{"step": 1e400}',
        b'{"step": NaN}',
        b'{"step": ' + b"[" * 100_000,
        b'{"step": ' + b"9" * 5_000 + b"}",
        b'{"a": 1}',
        b'{"step": 2, "a": 3}',
        b"[1]",
        b"\0" * 64,
    ],
)
def test_run_resumes_after_any_damaged_row(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 2}\n' + end)
    tracker = local_tracker(tmp_path, 2)
    tracker.log(3, {"a": 4})
    tracker.close()
    whole = [{"step": 2, "a": 3}] if end == b'{"step": 2, "a": 3}' else []
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2}, *whole, {"step": 3, "a": 4}]
    assert len(jsonl(tmp_path)) == 2 + len(whole) + (end == b'{"a": 1}'), "a row without a step is kept"


def test_invalid_rows_and_values_are_ignored(tmp_path: Path) -> None:
    rows = (
        *('{"step": "3", "a": 1}', '{"a": 1}', '{"step": NaN, "a": 1}', '{"step": -1}', '{"step": true, "a": 1}'),
        *('{"step": 4, "a": "x", "b": NaN, "c": null, "d": [1], "e": 2, "f": 1e400}', '{"step": 5.0, "a": 1e300}', "3"),
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert read_metrics(tmp_path) == [{"step": 4, "e": 2}, {"step": 5}]


def test_full_disk_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    tracker = local_tracker(tmp_path, 0)
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0})
    tracker.close()
    assert [record.message for record in caplog.records if "No space left" in record.message][1:] == []
    assert "training continues" in caplog.text


def test_audio_write_error_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = local_tracker(tmp_path, 0)
    (tmp_path / "audio_samples").write_text("a file where a folder should be, as a full disk refuses it")
    for step in range(2):
        tracker.log_audio(step, [("clip", {"prompt": np.zeros(240, np.float32)})], 24_000)
    tracker.close()
    assert caplog.text.count("training continues") == 1


def test_wandb_has_each_row_once_over_restarts(requeued: Uploaded) -> None:
    assert len(offline_runs(requeued.run)) == 2
    assert [*requeued.server.runs] == [(requeued.run / "wandb_id").read_text().strip()]
    losses = [row["trainer/step"] for row in requeued.rows if "train/loss" in row]
    assert losses == [10, 20, 30, 40, 50, 60, 70, 80], "though some steps were trained twice"
    assert [row["_step"] for row in requeued.rows] == [*range(len(requeued.rows))]


def test_rows_stay_single_after_many_crashes(tmp_path: Path) -> None:
    """A second resume from an early step, before the first one has caught up."""
    for step, rows in ((0, "rows:4"), (10, "rows:1"), (10, "rows:5")):
        track(tmp_path / "run", step, "tracking.mode=offline", NO_CODE, "--", rows, "finish:1")
    steps = [row["trainer/step"] for row in upload(tmp_path / "run").rows if "train/loss" in row]
    assert steps == [10, 20, 30, 40, 50, 60]


def test_wandb_gets_name_group_tags_and_config(requeued: Uploaded) -> None:
    record = requeued.record
    assert (record["displayName"], record["groupName"], record["jobType"]) == ("delay gpt2", "delay_gpt2", "train")
    assert record["tags"] == ["delay", "gpt2", "encodec_24khz"]
    config = {name: item["value"] for name, item in record["config"].items()}
    assert (config["pattern"], config["optim.schedule.warmup"], config["trainer.steps"]) == ("delay", 1000, 200_000)
    assert config["dataset.nsynth"]["splits"]["train"]["clips"] == 45
    assert not any(name.startswith("tracking") for name in config)


def test_offline_artifacts_outlive_their_checkpoint(requeued: Uploaded) -> None:
    number = (requeued.run / "wandb_id").read_text().strip()
    artifacts = {artifact["name"]: artifact for artifact in requeued.server.artifacts.values()}
    assert all(artifact["committed"] for artifact in artifacts.values())
    aliases = {alias["alias"] for alias in artifacts[f"checkpoint-{number}"]["aliases"]}
    assert aliases == {"latest", "step-80"} and artifacts[f"export-{number}"]["artifactTypeName"] == "model"
    assert sum(artifact["artifactTypeName"] == "code" for artifact in requeued.server.artifacts.values()) == 1
    names = [*requeued.server.files]
    assert any(name.endswith("/pipeline/train.py") for name in names), "the source code"
    assert any(name.endswith("/conf/train.yaml") for name in names) and not any("site.env" in name for name in names)


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true"])
def test_wandb_variables_turn_it_off(tmp_path: Path, variable: str) -> None:
    said = track(tmp_path / "run", 0, "--", "rows:2", "listen", "finish:0", env=dict([variable.split("=")]))
    assert "W&B is off" in said and "sync" not in said and not [*tmp_path.glob("run/wandb*")]
    assert [row["step"] for row in jsonl(tmp_path / "run")] == [10, 10, 20, 20]


def tracker_settings(*overrides: str) -> TrackerSettings:
    """The settings of the tracker by a command line."""
    settings = load_settings(TrainSettings, ["+exp=delay_gpt2", *overrides])
    return settings.tracking.with_environment(overridden_settings())


def test_wandb_variables_replace_defaults_only(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"PROJECT": "p", "ENTITY": "e", "NAME": "n", "RUN_GROUP": "g", "NOTES": "x", "TAGS": "a,b"}
    for name, value in record.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    settings = tracker_settings("tracking.project=typed", "tracking.tags=[c]").to_dict()
    names = ("project", "entity", "title", "group", "notes", "tags")
    assert [settings[name] for name in names] == ["typed", "e", "n", "g", "x", ["c"]]
    assert tracker_settings("tracking=none").to_dict() == {"name": "none"}


@pytest.mark.parametrize(
    ("variable", "auto"), [("WANDB_MODE=dryrun", "offline"), ("WANDB_DISABLED=1", "disabled"), ("WANDB_MODE=", "auto")]
)
def test_mode_setting_replaces_wandb_variables(monkeypatch: pytest.MonkeyPatch, variable: str, auto: str) -> None:
    monkeypatch.setenv(*variable.split("="))
    for setting, mode in (("auto", auto), ("online", "online")):
        settings = tracker_settings(f"tracking.mode={setting}")
        assert isinstance(settings, WandbSettings) and settings.current_mode() == mode


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tracking.timeout_seconds=0", "tracking.timeout_seconds=0: expected a number above 0"),
        ("tracking.mode=both", "tracking.mode=both: expected auto, online, offline or disabled"),
        ("tracking.queue=0", "tracking.queue=0: expected a whole number of 1 or more"),
    ],
)
def test_wrong_settings_of_wandb_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tracker_settings(setting)


def test_audio_is_logged_as_table_and_files(requeued: Uploaded) -> None:
    (row,) = [row for row in requeued.rows if "val/audio" in row]
    assert (row["val/audio"]["nrows"], row["val/audio"]["ncols"], row["trainer/step"]) == (1, 6, 80)
    assert [file.name for file in sorted((requeued.run / "audio_samples/step-80").iterdir())] == [
        "note-1-prompt.wav", "note-1-temperature-0.7.wav",
    ]  # fmt: skip


def test_non_finite_loss_raises_one_alert(requeued: Uploaded) -> None:
    (alert,) = requeued.server.alerts
    assert "not finite" in alert["title"] and "step 70" in alert["text"] and requeued.output.count("not finite") == 1


def test_stopped_run_is_preempted_and_prints_sync(requeued: Uploaded) -> None:
    assert requeued.record["preempting"] and requeued.record["ended"] == 75
    assert f"wandb sync --yes '{requeued.run}/wandb'" in requeued.output


def test_unwritable_home_is_not_needed(tmp_path: Path) -> None:
    """As for an unknown user in a container, whose home is `/`."""
    env = {"HOME": "/dev/null"}
    said = track(tmp_path / "run", 0, "tracking.mode=offline", NO_CODE, "--", "rows:1", "listen", "finish:0", env=env)
    assert "failed" not in said and "ERROR" not in said
    assert len([*offline_runs(tmp_path / "run")[0].glob("files/media/**/*.json")]) == 1, "the table of sounds"


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_never_prompts_for_a_key(tmp_path: Path, mode: str) -> None:
    """Also on a terminal, where `wandb.init` would prompt."""
    ours, theirs = pty.openpty()
    said = track(tmp_path / "run", 0, f"tracking.mode={mode}", NO_CODE, "--", "rows:2", "finish:0", stdin=theirs)
    os.close(ours), os.close(theirs)
    assert len(offline_runs(tmp_path / "run")) == 1
    assert ("there is no key" in said) == (mode == "online")


@pytest.mark.slow  # waits for W&B's own process, on a machine that is not busy
def test_stall_raises_an_alert(tmp_path: Path) -> None:
    actions = (
        "tracking.mode=offline",
        "tracking.stall_alert_seconds=0.8",
        NO_CODE,
        "--",
        "rows:1",
        "sleep:3",
        "rows:1",
        "finish:0",
    )
    said = track(tmp_path / "run", 0, *actions)
    (alert,) = upload(tmp_path / "run").server.alerts
    assert alert["title"] == "Training stalls" and "after step" in alert["text"]
    assert said.count("Training stalls") == 1


@pytest.mark.slow  # waits for W&B's own process, on a machine that is not busy
def test_death_of_wandb_process_is_logged_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    actions = ("rows:3", "sleep:4", "kill-core", "rows:50", "sleep:1", "rows:2", "finish:0")
    said = track(run, 0, "tracking.mode=offline", "tracking.timeout_seconds=5", NO_CODE, "--", *actions)
    assert said.count("W&B failed, training continues") == 1 and "Traceback" not in said
    assert len(jsonl(run)) == 110 and jsonl(run)[-1]["step"] == 550


def test_broken_wandb_package_is_logged_once(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/wandb.py").write_text("raise ImportError('made for another Python')")
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    said = track(tmp_path / "run", 0, "--", "rows:2", "finish:0", env={"PYTHONPATH": path}, stdin=subprocess.DEVNULL)
    assert said.count("made for another Python") == 1 and len(jsonl(tmp_path / "run")) == 4


def test_background_worker_drops_jobs_without_blocking(caplog: pytest.LogCaptureFixture) -> None:
    gate, done = threading.Event(), []
    worker: BackgroundWorker[None] = BackgroundWorker("W&B", lambda: gate.wait() and object(), 4, lambda: None, 1.0)  # type: ignore
    for i in range(50):
        worker.submit(lambda _, i=i: done.append(i), slow=i == 0)  # type: ignore
    assert not done and not gate.is_set(), "submit does not wait"
    assert not worker.close(lambda _: None, 0.1), "nothing can be done yet"
    gate.set()
    while len(done) < 4:  # pytest's timeout is the limit
        time.sleep(0.01)
    assert done == [1, 2, 3, 0], "in their order, the slow one last"
    assert len(re.findall("is dropped", caplog.text)) == 1
