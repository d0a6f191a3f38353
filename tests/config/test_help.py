"""`--help` of every entry point: what it does, examples that are valid, and settings that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from pipeline.common.paths import CONF
from pipeline.config import cli
from pipeline.config.cli import compose
from pipeline.shards import positional_to_overrides as words_of_shards

PIPELINE = Path(__file__).parents[2] / "pipeline"
ENTRIES = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "hydra_quiet")
EXAMPLE = re.compile(r"^ *(?:deepspeed .*?pipeline/(\w+)\.py|python -m pipeline\.(\w+))((?: \S+)*)", re.MULTILINE)


def doc(name: str) -> str:
    """The docstring of an entry point's module."""
    found = ast.get_docstring(ast.parse((PIPELINE / f"{name}.py").read_text()))
    assert found
    return found


def examples(name: str) -> list[list[str]]:
    """The words of its example commands; prose stands behind two spaces."""
    found = [(a or b, words.partition("  ")[0]) for a, b, words in EXAMPLE.findall(doc(name))]
    return [shlex.split(words, comments=True) for entry, words in found if entry == name]


@pytest.mark.parametrize("name", ENTRIES)
def test_help_says_what_it_does_with_examples_and_what_people_change(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    __import__(f"pipeline.{name}", fromlist=["main"]).main()
    said = capsys.readouterr().out
    assert re.match(r"[A-Z].*[.:]\n", said) and said.startswith(doc(name))
    assert re.search(r"(?i)\bpeople change: .*=", said) and examples(name)
    settings = said.partition("Settings and their defaults")[2]
    assert all(re.search(rf"^ +'?{key}'?:", settings, re.MULTILINE) for key in compose(name))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_example_of_the_help_is_valid(name: str) -> None:
    for words in examples(name):
        words = [word for word in words if word not in ("-m", "...")]
        compose(name, [word.split(",")[0] if word.startswith("+exp=") else word for word in words_of(name, words)])


def words_of(name: str, words: list[str]) -> list[str]:
    """As Hydra gets them."""
    return words_of_shards(words) if name == "shards" else words


@pytest.mark.parametrize("name", ENTRIES)
def test_every_setting_that_the_help_names_exists(name: str) -> None:
    """As `setting=`, in its own words; those of another command stand behind that command's name."""
    others = re.compile(rf"(?:python -m pipeline\.|deepspeed .*pipeline/)(?!{name}\b).*")
    named = set(re.findall(r"(?<![\w./])\+?([a-z_]+(?:\.[a-z_]+)*)=", others.sub("", doc(name))))
    known = {*cli._defaults(name), *(["exp"] if name == "train" else [])}
    assert named and named <= known, named - known
