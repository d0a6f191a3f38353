"""`--help` of every command: its examples compose, and the settings that it names exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.cli import compose
from pipeline.config.conf_files import list_commands, list_open_settings, list_settings
from pipeline.config.help import read_explanations
from pipeline.shards import positional_to_overrides

PIPELINE = Path(__file__).parents[2] / "pipeline"
COMMANDS = list_commands()
EXAMPLE = re.compile(r"^ *(?:deepspeed .*?pipeline/(\w+)\.py|python -m pipeline\.(\w+))((?: \S+)*)", re.MULTILINE)


def doc(name: str) -> str:
    """The docstring of a command's module."""
    docstring = ast.get_docstring(ast.parse((PIPELINE / f"{name}.py").read_text()))
    assert docstring
    return docstring


def examples(name: str) -> list[list[str]]:
    """The arguments of the example commands in a docstring; comments follow two spaces."""
    lines = [(a or b, arguments.partition("  ")[0]) for a, b, arguments in EXAMPLE.findall(doc(name))]
    return [shlex.split(arguments, comments=True) for command, arguments in lines if command == name]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_summary_examples_and_all_settings(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    __import__(f"pipeline.{name}", fromlist=["main"]).main()
    output = capsys.readouterr().out
    assert output.startswith(doc(name)) and doc(name).splitlines()[0].strip() and examples(name)
    settings = output.partition("Settings (name=default")[2]
    assert all(re.search(rf"^ *{key}[.=]", settings, re.MULTILINE) for key in compose(name))
    assert max(map(len, settings.splitlines())) <= 80


def test_help_shows_the_settings_of_typed_choices() -> None:
    command = [sys.executable, "-m", "pipeline.preprocess", "data=folder", "data.valid=0.2", "--help"]
    output = subprocess.run(command, cwd=PIPELINE.parent, capture_output=True, text=True, check=True).stdout
    assert "data=folder: A folder of audio files, with its subfolders." in output
    explanation = "share of the recordings (or subfolders) for validation"
    assert re.search(rf"^  data.valid=0.2( +\[.*\])?\n +{re.escape(explanation)}$", output, re.MULTILINE)


def test_explanations_are_the_comments_of_conf(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# The file,\n# in two lines.\nfirst: 1   # one\n           # line more\n"
        "nested:    # group\n  # above\n  inner: {a: 2}\n  other: 'x'  # of other\nlast: null\n"
    )
    assert read_explanations(file) == {
        "": "The file, in two lines.", "first": "one line more", "nested": "group", "nested.inner": "above",
        "nested.other": "of other", "last": "",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_composes(name: str) -> None:
    for arguments in examples(name):
        overrides = [argument for argument in arguments if argument not in ("-m", "...")]
        if name == "shards":
            overrides = positional_to_overrides(overrides)
        compose(name, [text.split(",")[0] if text.startswith("+exp=") else text for text in overrides])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_that_the_help_names_exists(name: str) -> None:
    """Those after `python -m pipeline.OTHER` belong to the other command."""
    others = re.compile(rf"(?:python -m pipeline\.|deepspeed .*pipeline/)(?!{name}\b).*")
    named = set(re.findall(r"(?<![\w./])\+?([a-z_]+(?:\.[a-z_]+)*)=", others.sub("", doc(name))))
    known = {*list_settings(name), *(["exp"] if name == "train" else [])}
    known |= {text for text in named if text.partition(".")[0] in list_open_settings(name)}
    assert named and named <= known, named - known
