"""`python -m tests.helpers.tracked_run RUN STEP OVERRIDES... -- WORDS...`: tracks a simulated training from a step on.

Words: `rows:N` logs N rows ten steps apart, `nan` one without a finite loss, `sleep:S` waits, `logged` waits until W&B
has the rows, `listen`, `cache:DIR`, `checkpoint`, `export`, `kill-core` ends W&B's own process, `die` ends this one,
`finish:CODE`.
Prints the longest time that a call took.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.config.cli import load_settings, overridden_settings
from pipeline.tracking.base import TrackedRun
from pipeline.tracking.run_tracker import build_tracker
from pipeline.training.settings import TrainSettings


def main() -> None:
    at = sys.argv.index("--")
    run, step, actions = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[at + 1 :]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings = load_settings(TrainSettings, [f"run='{run}'", "+exp=delay_gpt2", *sys.argv[3:at]])
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.txt").write_text("a log\n")
    tracking = settings.tracking.with_environment(overridden_settings())
    tracker = build_tracker(tracking, TrackedRun(run, step, settings.name, settings.to_dict()))
    longest = 0.0
    for action in actions:
        name, _, value = action.partition(":")
        began = time.perf_counter()
        if name == "rows":
            for _ in range(int(value)):
                step += 10
                tracker.log(
                    step, {"train/loss": 10 / step, "train/loss/codebook_1": 10 / step, "train/clips": step * 4}
                )
                tracker.log(step, {"val/loss": 11 / step})
        elif name == "nan":
            step += 10
            tracker.log(step, {"train/loss": float("nan")})
        elif name == "listen":
            wav = np.sin(np.arange(12_000, dtype="f4") / 10)
            tracker.log_audio(step, [("note 1", {"prompt": wav, "temperature 0.7": wav / 2})], 24_000)
        elif name in ("cache", "checkpoint", "export"):
            tracker.log_artifact(name, value or _write_output(run, name, step))
        elif name == "kill-core":
            subprocess.run(["pkill", "-9", "-P", str(os.getpid()), "wandb-core"], check=True)
        elif name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "sleep":
            time.sleep(float(value))
        elif name == "logged":
            _wait_until_logged(run, step)
        elif name == "finish":
            tracker.close(int(value))
        else:
            longest = max(longest, time.perf_counter() - began)
    print(f"longest call: {longest:.3f} s")


def _wait_until_logged(run: Path, step: int) -> None:
    """Wait until W&B has the rows up to a step, as our own record of them says."""
    record = run / "wandb" / "logged_steps.json"
    while not record.exists() or json.loads(record.read_text()).get("val/loss", 0) < step:
        time.sleep(0.05)  # pytest's timeout is the limit


def _write_output(run: Path, kind: str, step: int) -> Path:
    """Write the files of a checkpoint or export that tracking reads."""
    folder = run / (f"checkpoints/step-{step}" if kind == "checkpoint" else "export")
    folder.mkdir(parents=True)
    files = (
        {"complete.json": {"step": step, "ranks": 2}} if kind == "checkpoint" else {"config.json": {"pattern": "delay"}}
    )
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    main()
