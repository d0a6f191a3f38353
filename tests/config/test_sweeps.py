"""Each job of a sweep has a separate output folder."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from pipeline.config.cli import hydra_command

LR = ("optim.lr=1e-3,3e-4",)


def outputs(monkeypatch: pytest.MonkeyPatch, command: str, *overrides: str) -> list[str]:
    """The output folders of the jobs of a sweep."""
    seen: list[str] = []

    def task(settings: Any) -> None:
        seen.append(settings.run if command == "train" else settings.out)

    monkeypatch.setattr("sys.argv", [command, "-m", *overrides])
    hydra_command(importlib.import_module(f"pipeline.{command}").main.settings)(task)()
    return seen


@pytest.mark.parametrize(
    ("command", "overrides", "folders"),
    [
        ("train", ["+exp=delay_gpt2", *LR], ["delay_gpt2/optim.lr-0.001", "delay_gpt2/optim.lr-0.0003"]),
        ("train", ["pattern=delay,flatten"], ["delay_gpt2", "flatten_gpt2"]),
        ("train", ["+exp=delay_gpt2,flatten_gpt2"], ["delay_gpt2", "flatten_gpt2"]),
        ("train", ["pattern=delay,flatten", "seed=1", *LR], [f"{p}_gpt2/optim.lr-{lr}" for p in ("delay", "flatten")
                                                             for lr in ("0.001", "0.0003")]),
        ("train", ["run=runs/x-${seed}", "seed=0,1"], ["x-0", "x-1"]),
        ("train", ["shards=/a b/c,/d"], ["delay_gpt2/shards-_a_b_c", "delay_gpt2/shards-_d"]),
        ("preprocess", ["part=1/2,2/2"], ["nsynth", "nsynth"]),
        ("generate", ["seed=1,2"], ["generated/seed-1", "generated/seed-2"]),
    ],
)  # fmt: skip
def test_each_job_has_a_folder(
    monkeypatch: pytest.MonkeyPatch, command: str, overrides: list[str], folders: list[str]
) -> None:
    outs = outputs(monkeypatch, command, *overrides)
    assert [folder.removeprefix("runs/").removeprefix("shards/") for folder in outs] == folders


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        (
            "train",
            ["run=runs/x", *LR],
            "run=runs/x: the jobs of this sweep over optim.lr .*'run=runs/x-\\$\\{optim.lr\\}'",
        ),
        ("train", ["run=runs/${seed}", "seed=0,1", *LR], "over optim.lr would write into one folder"),
        ("generate", ["out=a.wav", "seed=1,2"], "'out=a-\\$\\{seed\\}.wav'"),
    ],
)
def test_one_folder_for_all_jobs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    overrides: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        outputs(monkeypatch, command, *overrides)
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("error: ")
    assert re.search(message, errors), errors
