"""The command that preprocessing prints at its end works as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.settings import format_override
from pipeline.config.cli import compose, load_settings
from pipeline.preprocessing import messages
from pipeline.training.data import open_datasets
from pipeline.training.engine import model_config
from pipeline.training.settings import TrainSettings
from tests.helpers.preprocess_runs import make, tones


def test_next_command_trains_on_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for another codec, fewer codebooks, and a folder name with characters special to the shell and Hydra."""
    out = tmp_path / "it's mine, (x=1)"
    address = str(out).replace("'", "\\'")
    assert make("folder", tones(tmp_path / "in", 12), "unused", f"out='{address}'") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    launcher, script, *overrides = shlex.split(line.removeprefix("next: "))
    assert (launcher, script) == ("deepspeed", "pipeline/train.py")
    settings = load_settings(TrainSettings, overrides)
    assert settings.model.name == "tiny" and settings.shards == str(out)
    assert model_config(settings, open_datasets(settings)).codebooks == 2


def test_default_codec_is_not_in_command() -> None:
    codec = compose("train", ["+exp=delay_gpt2"]).codec
    assert dict(codec) == messages.DEFAULT_CODEC
    assert messages.training_command("shards/x", codec) == "deepspeed pipeline/train.py +exp=delay_gpt2 shards=shards/x"
    own = {**codec, "weights_dir": "/my codecs"}
    assert "'codec.weights_dir='\"'\"'/my codecs'\"'\"" in messages.training_command("shards/x", own)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$"), min_size=1))
def test_any_value_survives_shell_and_hydra(value: str) -> None:
    """Except `${`, which refers to another setting."""
    (argument,) = shlex.split(shlex.join([format_override("out", f"/{value}")]))
    assert OverridesParser.create().parse_override(argument).value() == f"/{value}"
