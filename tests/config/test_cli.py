"""The command line of every command: errors in one line, exit codes, hints."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.exit_codes import EXIT_OUTPUT_CLOSED
from pipeline.config.cli import load_settings
from pipeline.config.conf_files import list_commands
from pipeline.config.hints import quoting_hint
from pipeline.generation.settings import GenerateSettings
from tests.helpers.warm_python import run_python

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys
sys.path.insert(0, {root!r})
from pipeline.config.cli import hydra_command
from pipeline.common.errors import InputError

import importlib
@hydra_command(importlib.import_module("pipeline." + {name!r}).main.settings)
def main(settings):
    "A task."
    if settings.out == "refuse":
        raise InputError("out=refuse: give another")
    print("out", settings.out, settings.codec.codebooks, flush=True)
    return 75 if settings.out == "stop" else None

__doc__ = "What it does."
main()
"""


def run(*arguments: str, name: str = "preprocess") -> subprocess.CompletedProcess[str]:
    return run_python(["-c", COMMAND.format(root=str(ROOT), name=name), *arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([], 0, "out shards/nsynth 8"),
        (["data=notes", "codec.codebooks=4"], 0, "out shards/notes 4"),
        (["--local_rank=3"], 0, "out shards/nsynth 8"),
        (["out=stop"], 75, "out stop 8"),
        (["-m", "data=notes,nsynth"], 0, "out shards/notes 8\nout shards/nsynth 8"),
        (["out=refuse"], 2, "error: out=refuse: give another"),
        (["codec.codebks=3"], 2, "error: there is no setting 'codec.codebks'; did you mean 'codec.codebooks'?"),
        (["dta=notes"], 2, "error: there is no setting 'dta'; did you mean 'data'?"),
        (["codec=foo"], 2, "error: codec=foo: there is no such choice; choices are dac_16khz, dac_24khz"),
        (["codec=null"], 2, "error: codec=null: there is no such choice"),
        (["samples_per_shard=1.5"], 2, "error: samples_per_shard=1.5: expected a whole number"),
        (["-m", "data=notes", "samples_per_shard=x"], 2, "error: samples_per_shard=x: expected a whole number"),
        (["out=2024"], 0, "out 2024 8"),
        (["out=take(1)"], 2, """: "out='take(1)'"\n"""),
        (["--help"], 0, "codec: dac_16khz, dac_24khz, dac_44khz, encodec_24khz, encodec_32khz, encodec_48khz"),
    ],
)
def test_a_command_line_runs_or_fails_in_one_line(arguments: list[str], code: int, expected: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert expected in done.stdout + done.stderr
    if code == 2:
        assert done.stderr.count("\n") == 1 and not done.stdout


def test_a_sweep_leaves_no_files_behind(tmp_path: Path) -> None:
    """Neither in the current folder nor in the folder of temporary files, which several users share."""
    (tmp_path / "temporary").mkdir()
    subprocess.run(
        [sys.executable, "-c", COMMAND.format(root=str(ROOT), name="preprocess"), "-m", "data=notes,nsynth"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        check=True,
    )
    assert [*tmp_path.rglob("*")] == [tmp_path / "temporary"]


def test_names_are_escaped_on_a_terminal_without_utf8() -> None:
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT), name="preprocess"), "out='Björk'"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "out Bj\\xf6rk 8\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "pipeline.train", "--help"],
        ["-m", "pipeline"],
        ["-c", COMMAND.format(root=str(ROOT), name="preprocess")],
    ],
    ids=["help", "list", "task"],
)
def test_a_closed_pipe_leaves_no_traceback(arguments: list[str]) -> None:
    """As with `| head`, which closes its input when it has read enough."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert not done.stderr and done.returncode in (0, EXIT_OUTPUT_CLOSED)


def test_the_commands_are_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    named = re.findall(r"^python -m pipeline\.(\w+) +[A-Z].*[.:]$", done.stdout, re.MULTILINE)
    commands = set(list_commands())
    assert done.returncode == 0 and set(named) == commands | {"check"}


def test_a_stop_ends_a_sweep(tmp_path: Path) -> None:
    """A job that exits with 75 ends the sweep: the jobs after it do not run."""
    arguments = ["-m", "out=stop,go", "codec.codebooks=4"]
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT), name="preprocess"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75 and done.stdout == "out stop 4\n", done.stdout + done.stderr


def test_a_setting_without_a_value_is_refused() -> None:
    missing = run(name="evaluate")
    assert missing.returncode == 2 and missing.stderr == "error: the setting 'run' has no default: give run=...\n"


@pytest.mark.parametrize(
    ("name", "argument", "hint"),
    [
        ("train", "exp=delay_gpt2", "+exp=delay_gpt2"),
        ("train", "data=folder", "data=CHOICE is a setting of download, preprocess"),
        ("train", "dta.seconds=1", "did you mean 'data.seconds'?"),
        (
            "train",
            "+exp=dealy_gpt2",
            "+exp=dealy_gpt2: there is no such choice; did you mean 'delay_gpt2'? choices are",
        ),
        ("train", "+exp=", "+exp=: there is no such choice; choices are delay_gpt2, depth_gpt2, finetune"),
        ("train", "model=null", "model=null: there is no such choice; choices are gpt2, large"),
        ("train", "+trainer.stpes=3", "did you mean 'trainer.steps'?"),
        ("train", "++nothing.reads=3", "there is no setting 'nothing.reads'"),
        ("train", "+model=tiny", "model: given more than once"),
        ("generate", "prompt=take(1).wav", "\"prompt='take(1).wav'\""),
        ("generate", "prompt=x, live.wav", "\"prompt='x, live.wav'\""),
        ("generate", "prompt=it's.wav", "\"prompt='it\\'s.wav'\""),
        ("generate", "out=o/a=b/c.wav", "\"out='o/a=b/c.wav'\""),
        ("generate", "prompt=$x{1}.wav", "'$x{1}.wav'"),
        ("generate", "prompt=[take(1).wav,b.wav]", "\"prompt=['a (1).wav',b.wav]\""),
        ("generate", "seed", "settings are given as name=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_hint(
    name: str, argument: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, argument])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"pipeline.{name}").main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and hint in errors and errors.startswith("error: ") and errors.count("\n") == 1


@settings(max_examples=15)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
def test_a_quoting_hint_can_be_pasted_into_a_shell(name: str) -> None:
    """The value passes unchanged through the shell and through Hydra."""
    hint = quoting_hint(f"prompt={name}")
    (override,) = shlex.split(hint.split("for the shell: ")[1].split(" ([A,B]")[0])
    if name[0] not in "[{" and "${" not in name:
        assert load_settings(GenerateSettings, [override]).prompt == name


def test_help_of_train_lists_its_own_groups_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--help"])
    importlib.import_module("pipeline.train").main()
    groups = capsys.readouterr().out.partition("Groups (group=choice):")[2].partition("Settings")[0]
    assert re.findall(r"^  (\S+):", groups, re.MULTILINE) == [
        "codec", "deepspeed", "+exp", "model", "optim", "pattern", "tracking",
    ]  # fmt: skip
