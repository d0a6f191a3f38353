"""Tracking: `metrics.jsonl`, and one offline W&B run for all restarts; errors never stop training."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.metrics_file import read_metrics
from pipeline.config.cli import compose, overridden_settings
from pipeline.tracking import base, wandb_log
from pipeline.tracking.background_worker import BackgroundWorker
from pipeline.tracking.wandb_environment import mode_from_environment
from tests.helpers.training_caches import write_cache

ROOT = Path(__file__).parents[2]
NO_CODE = "tracking.code=false"


def track(run: Path, step: int, *actions: str, env: dict[str, str] | None = None, **options: Any) -> str:
    """Track a simulated training in a separate process, and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "timeout": 120, **options}
    clean |= {"HOME": str((options["cwd"] / run).parent), "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "tests.helpers.tracked_run", str(run), str(step), *actions]
    done = subprocess.run(command, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of all offline files of a run, in the order they were logged."""
    return [row for file in files_of(run) for row in wandb_log.rows(file)]


def files_of(run: Path) -> list[Path]:
    return wandb_log.files(run, (run / "wandb_id").read_text().strip())


def logged(run: Path, kind: str) -> list[Any]:
    """The records of one kind in all offline files of a run."""
    return [getattr(r, kind) for file in files_of(run) for r in wandb_log.records(file) if r.HasField(kind)]


def jsonl(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def requeued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that crashed after step 40, resumed from step 20, and was stopped; with its output."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    write_cache(folder / "nsynth")
    run = Path("delay gpt2")  # a relative path, as most people type it
    actions = ("rows:4", "sleep:8")  # ends without a word
    track(run, 0, "tracking.mode=offline", "--", "cache:nsynth", *actions, cwd=folder)
    actions = ("rows:4", "nan", "nan", "listen", "checkpoint", "export", "finish:75")
    return folder / run, track(run, 20, "tracking.mode=offline", "--", "cache:nsynth", *actions, cwd=folder)


def test_rows_after_the_resumed_step_are_dropped(requeued: tuple[Path, str]) -> None:
    steps = [row["step"] for row in jsonl(requeued[0])]
    assert steps == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50, 60, 60, 70, 80]


def test_incomplete_row_is_dropped_and_nan_is_null(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    tracker = base.JsonlTracker(tmp_path, 5)
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
    tracker = base.JsonlTracker(tmp_path, 2)
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
    tracker = base.JsonlTracker(tmp_path, 0)
    tracker._file.close()
    tracker._file = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0})
    tracker.close()
    assert [record.message for record in caplog.records if "No space left" in record.message][1:] == []
    assert "training continues" in caplog.text


def test_audio_write_error_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = base.JsonlTracker(tmp_path, 0)
    (tmp_path / "audio_samples").write_text("a file where a folder should be, as a full disk refuses it")
    for step in range(2):
        tracker.log_audio(step, [("clip", {"prompt": np.zeros(240, np.float32)})], 24_000)
    tracker.close()
    assert caplog.text.count("training continues") == 1


@pytest.mark.slow  # waits for W&B's own process, on a machine that is not busy
def test_wandb_steps_are_monotonic_over_restarts(requeued: tuple[Path, str]) -> None:
    run, _ = requeued
    ids = {record.run_id for record in logged(run, "run")}
    assert len(files_of(run)) == 2 and ids == {(run / "wandb_id").read_text().strip()}
    steps = [row["trainer/step"] for row in rows_of(run)]
    assert steps == sorted(steps)
    losses = [(row["trainer/step"], row["train/loss"]) for row in rows_of(run) if "train/loss" in row]
    assert [step for step, _ in losses] == [10, 20, 30, 40, 50, 60, 70, 80], "each once, though some were trained twice"


def test_wandb_gets_name_group_tags_and_config(requeued: tuple[Path, str]) -> None:
    record = logged(requeued[0], "run")[0]
    assert (record.display_name, record.run_group, record.job_type) == ("delay gpt2", "delay_gpt2", "train")
    assert list(record.tags) == ["delay", "gpt2", "encodec_24khz"]
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert (config["pattern"], config["optim.schedule.warmup"], config["trainer.steps"]) == (
        "delay",
        1000,
        200_000,
    )
    assert not any(name.startswith("tracking") for name in config)
    metrics = {m.name or m.glob_name: m.step_metric for m in logged(requeued[0], "metric")}
    assert metrics == {"trainer/step": "", "*": "trainer/step", "val/loss": "trainer/step"}
    assert any(record.HasField("environment") for file in files_of(requeued[0]) for record in wandb_log.records(file))


def test_artifacts_link_dataset_run_and_export(requeued: tuple[Path, str]) -> None:
    run, _ = requeued
    number = (run / "wandb_id").read_text().strip()
    artifacts = {a.name: (a.type, a.use_after_commit, set(a.aliases)) for a in logged(run, "artifact")}
    assert artifacts["cache-nsynth"] == ("dataset", True, {"latest"}), "an input"
    assert artifacts[f"checkpoint-{number}"] == ("checkpoint", False, {"latest", "step-80"})
    assert artifacts[f"export-{number}"] == ("model", False, {"latest"})
    assert any(kind == "code" for kind, _, _ in artifacts.values())
    (cache,) = {a.metadata for a in logged(run, "artifact") if a.name == "cache-nsynth"}
    assert json.loads(cache)["splits"]["train"]["clips"] == 45


def test_offline_artifacts_have_absolute_paths(requeued: tuple[Path, str]) -> None:
    """`wandb sync` runs elsewhere and later: files have absolute paths, and outlive the checkpoint that they are of."""
    shutil.rmtree(requeued[0] / "checkpoints")  # as retention does
    for artifact in logged(requeued[0], "artifact"):
        paths = [Path(entry.local_path) for entry in artifact.manifest.contents if not entry.ref]
        assert paths and all(path.is_absolute() and path.is_file() for path in paths), (artifact.name, paths)
        assert all(str(requeued[0]) in str(path) for path in paths), "the program's folder may have changed, too"


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true"])
def test_wandb_variables_turn_it_off(tmp_path: Path, variable: str) -> None:
    said = track(tmp_path / "run", 0, "--", "rows:2", "listen", "finish:0", env=dict([variable.split("=")]))
    assert "W&B is off" in said and "sync" not in said and not [*tmp_path.glob("run/wandb*")]
    assert [row["step"] for row in jsonl(tmp_path / "run")] == [10, 10, 20, 20]


def test_wandb_variables_replace_defaults_only(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"PROJECT": "p", "ENTITY": "e", "NAME": "n", "RUN_GROUP": "g", "NOTES": "x", "TAGS": "a,b"}
    for name, value in record.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    cfg = compose("train", ["+exp=delay_gpt2", "tracking.project=typed", "tracking.tags=[c]"])
    base.apply_environment(cfg, overridden_settings())
    names = ("project", "entity", "title", "group", "notes", "tags")
    assert [cfg.tracking[name] for name in names] == ["typed", "e", "n", "g", "x", ["c"]]
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert (
        mode_from_environment({"mode": "auto"}) == "offline" and mode_from_environment({"mode": "online"}) == "online"
    )
    monkeypatch.setenv("WANDB_DISABLED", "1")
    assert (
        mode_from_environment({"mode": "auto"}) == "disabled" and mode_from_environment({"mode": "online"}) == "online"
    )
    plain = compose("train", ["tracking=none"])
    base.apply_environment(plain, overridden_settings())
    assert plain.tracking == {"name": "none"}


@pytest.mark.slow  # waits for W&B's own process, on a machine that is not busy
def test_audio_is_logged_as_table_and_files(requeued: tuple[Path, str]) -> None:
    run, _ = requeued
    (row,) = [row for row in rows_of(run) if "val/audio/_type" in row]
    assert (row["val/audio/nrows"], row["val/audio/ncols"], row["trainer/step"]) == (1, 6, 80)
    assert [file.name for file in sorted((run / "audio_samples/step-80").iterdir())] == [
        "note-1-prompt.wav", "note-1-temperature-0.7.wav",
    ]  # fmt: skip


def test_non_finite_loss_raises_one_alert(requeued: tuple[Path, str]) -> None:
    run, said = requeued
    (alert,) = logged(run, "alert")
    assert "not finite" in alert.title and "step 70" in alert.text and said.count("not finite") == 1


def test_stopped_run_is_preempted_and_prints_sync(requeued: tuple[Path, str]) -> None:
    run, said = requeued
    assert len(logged(run, "preempting")) == 1 and logged(run, "exit")[-1].exit_code == 75
    assert f"wandb sync --yes '{run}/wandb'" in said


def test_unwritable_home_is_not_needed(tmp_path: Path) -> None:
    """As for an unknown user in a container, whose home is `/`."""
    env = {"HOME": "/dev/null"}
    said = track(tmp_path / "run", 0, "tracking.mode=offline", NO_CODE, "--", "rows:1", "listen", "finish:0", env=env)
    assert "failed" not in said and "ERROR" not in said
    assert [row["trainer/step"] for row in rows_of(tmp_path / "run") if "val/audio/_type" in row] == [10]


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_never_prompts_for_a_key(tmp_path: Path, mode: str) -> None:
    """Also on a terminal, where `wandb.init` would prompt."""
    ours, theirs = pty.openpty()
    said = track(tmp_path / "run", 0, f"tracking.mode={mode}", NO_CODE, "--", "rows:2", "finish:0", stdin=theirs)
    os.close(ours), os.close(theirs)
    assert [row["trainer/step"] for row in rows_of(tmp_path / "run")][-1] == 20
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
    (alert,) = logged(tmp_path / "run", "alert")
    assert alert.title == "Training stalls" and "after step 10" in alert.text and said.count("Training stalls") == 1


@pytest.mark.slow  # waits for W&B's own process, on a machine that is not busy
def test_death_of_wandb_process_is_logged_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    actions = ("rows:3", "sleep:4", "kill-core", "rows:50", "sleep:1", "rows:2", "finish:0")
    said = track(run, 0, "tracking.mode=offline", "tracking.timeout_seconds=5", NO_CODE, "--", *actions)
    assert said.count("W&B failed, training continues") == 1 and "Traceback" not in said
    assert len(jsonl(run)) == 110 and jsonl(run)[-1]["step"] == 550
    assert [row["trainer/step"] for row in rows_of(run) if "val/loss" in row] == [10, 20, 30], "what it had is kept"


def test_broken_wandb_package_is_logged_once(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/wandb.py").write_text("raise ImportError('made for another Python')")
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    said = track(tmp_path / "run", 0, "--", "rows:2", "finish:0", env={"PYTHONPATH": path})
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
