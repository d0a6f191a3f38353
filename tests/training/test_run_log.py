"""The log of a run: time left from the first step on, and the commands to run next."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.common.console import format_duration
from pipeline.config.cli import load_settings
from pipeline.evaluation.settings import EvaluateSettings
from pipeline.training.run_log import StepProgress
from tests.helpers.training_caches import write_cache
from tests.training.test_train import train_here

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (1e6, "11 d 13 h"),
        (float("inf"), "?"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_log_leads_from_the_first_step_to_the_next_command(tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path / "a cache"), tmp_path / "run"
    train_here(f"'{cache}'", run, "trainer.steps=3", "trainer.log_every=2", "trainer.preflight=false")
    lines = (run / "log.txt").read_text().splitlines()
    assert any(re.search(r"step 1/3  the first step took [\d.]+ s  eta \d+ s$", line) for line in lines)
    assert any(re.search(r"step 2/3  train/loss .* eta \d+ s$", line) for line in lines)
    generate, evaluate = (line.partition("next: python -m ")[2] for line in lines[-2:])
    assert generate.startswith(f"pipeline.generate run={run} ")
    command, *overrides = shlex.split(evaluate)
    settings = load_settings(EvaluateSettings, overrides)
    assert command == "pipeline.evaluate" and (settings.run, settings.shards) == (str(run), str(cache))


def test_last_step_has_no_time_left() -> None:
    progress = StepProgress(4, 6, is_main=True)
    progress.start()
    assert progress.time_left() == ""
    progress.update(5)
    assert progress.time_left().startswith("eta ")
    progress.update(6)
    assert progress.time_left() == ""
