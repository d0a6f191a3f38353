"""What a run says to do next can be done as it is said."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.settings import format_override
from pipeline.config.cli import compose
from pipeline.preprocessing import messages
from pipeline.training.data import open_datasets
from pipeline.training.engine import model_config
from tests.helpers.preprocess_runs import make, tones


def test_the_next_command_trains_on_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another codec, fewer codebooks, and a folder that a shell and Hydra would take apart."""
    out = tmp_path / "it's mine, (x=1)"
    address = str(out).replace("'", "\\'")
    assert make("folder", tones(tmp_path / "in", 12), "unused", f"out='{address}'") == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    launcher, script, *words = shlex.split(told.removeprefix("next: "))
    assert (launcher, script) == ("deepspeed", "pipeline/train.py")
    cfg = compose("train", words)
    assert cfg.model.name == "tiny" and cfg.shards == str(out)
    assert model_config(cfg, open_datasets(cfg)).codebooks == 2


def test_what_is_usual_is_not_said() -> None:
    codec = compose("train", ["+exp=delay_gpt2"]).codec
    assert dict(codec) == messages.DEFAULT_CODEC
    assert messages.training_command("shards/x", codec) == "deepspeed pipeline/train.py +exp=delay_gpt2 shards=shards/x"
    own = {**codec, "weights_dir": "/my codecs"}
    assert "'codec.weights_dir='\"'\"'/my codecs'\"'\"" in messages.training_command("shards/x", own)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$"), min_size=1))
def test_any_value_comes_through_a_shell_and_hydra(value: str) -> None:
    """But for `${`, which names another setting."""
    (given_word,) = shlex.split(shlex.join([format_override("out", f"/{value}")]))
    assert OverridesParser.create().parse_override(given_word).value() == f"/{value}"
