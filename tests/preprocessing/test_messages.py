"""The command that preprocessing prints at its end works as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.settings import format_override
from pipeline.config.cli import load_settings
from pipeline.data.training_length import suggest_steps
from pipeline.preprocessing import messages
from pipeline.preprocessing.settings import PreprocessSettings
from pipeline.training.data import open_datasets
from pipeline.training.engine import model_config
from pipeline.training.settings import TrainSettings
from tests.helpers.preprocess_runs import make, tones

ALL_TRAIN = ("data.valid=0", "data.test=0")


def test_next_command_trains_on_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for another codec, fewer codebooks, and a folder name with characters special to the shell and Hydra."""
    out = tmp_path / "it's mine, (x=1)"
    address = str(out).replace("'", "\\'")
    assert make("folder", tones(tmp_path / "in", 12), "unused", f"out='{address}'", *ALL_TRAIN) == 0
    printed = capsys.readouterr().out
    command = shlex.split(printed.partition("next: ")[2].replace("\\\n", ""))
    assert command[:2] == ["deepspeed", "pipeline/train.py"]
    train = load_settings(TrainSettings, command[2:])
    assert train.model.name == "tiny" and train.shards == str(out) and train.run == f"runs/{out.name}"
    assert train.trainer.steps == suggest_steps(12, train.trainer.micro_batch)
    assert model_config(train, open_datasets(train)).codebooks == 2


def test_next_command_leaves_out_defaults() -> None:
    """A large dataset is trained on for the default number of steps."""
    settings = load_settings(PreprocessSettings, ["codec=encodec_24khz", "codec.codebooks=4"])
    start = ["deepspeed", "pipeline/train.py"]
    train = load_settings(TrainSettings)
    assert train.trainer.steps == 200_000 and train.codec.name == settings.codec.name
    command = messages.training_command("s3://bucket/x/", 300_000, settings.codec)
    assert command == [*start, "codec.codebooks=4", "shards=s3://bucket/x/", "run=runs/x"]
    assert messages.training_command("shards/x", 1000, settings.codec)[-1] == "trainer.steps=1800"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$"), min_size=1))
def test_any_value_survives_shell_and_hydra(value: str) -> None:
    """Except `${`, which refers to another setting."""
    (argument,) = shlex.split(shlex.join([format_override("out", f"/{value}")]))
    assert OverridesParser.create().parse_override(argument).value() == f"/{value}"
