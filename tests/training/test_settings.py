"""Training settings that are not valid are refused in one line before anything is read."""

from __future__ import annotations

import pytest

from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.config.cli import load_settings
from pipeline.training.settings import TrainSettings


@pytest.mark.parametrize("exp", sorted(file.stem for file in (CONF / "exp").glob("*.yaml")))
def test_defaults_are_valid(exp: str) -> None:
    assert load_settings(TrainSettings, [f"+exp={exp}"]).name == exp


def test_sequence_schedule_fits_one_argument() -> None:
    parts = "{name: linear, steps: 1000, warmup: 100, floor: 0.1}, {name: constant, scale: 0.1}"
    settings = load_settings(TrainSettings, [f"optim.schedule={{name: sequence, parts: [{parts}]}}"])
    rates = [settings.optim.schedule.multiplier(step, 3000) for step in (99, 999, 1000, 2999)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.1], abs=2e-3)


def test_schedule_is_chosen_by_its_name() -> None:
    schedule = load_settings(TrainSettings, ["optim.schedule.name=cosine", "optim.schedule.floor=0.1"]).optim.schedule
    assert schedule.multiplier(200_000, 200_000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.steps=0", r"trainer\.steps=0: expected a whole number of 1 or more"),
        ("trainer.steps=1.5", r"trainer\.steps=1\.5: expected a whole number"),
        ("trainer.micro_batch=0", r"trainer\.micro_batch=0: expected"),
        ("trainer.precision=fp16", r"trainer\.precision=fp16: expected auto, bf16 or fp32"),
        ("trainer.preflight=maybe", r"trainer\.preflight=maybe: expected true or false or only"),
        ("data.seconds=-2", r"data\.seconds=-2: expected a number above 0"),
        ("model.dropout=2", r"model\.dropout=2: expected a number of 0 or more and below 1"),
        ("optim.betas=[0.9]", r"optim\.betas=\[0\.9\]: expected a list of 2, each a number of 0 or more and below 1"),
        ("optim.lr=nan", r"optim\.lr=nan: expected a number of 0 or more"),
        ("audio_samples.temperatures=[hot]", r"temperatures=\[.?hot.?\]: expected a list, each a number"),
        ("optim.name=adam", r"optim\.name=adam: there is no such optimizer; did you mean 'adamw'"),
        ("optim.schedule.name=cosin", r"optim\.schedule\.name=cosin: there is no such schedule; did you mean 'cosine'"),
        ("optim.schedule.warmup=-1", r"optim\.schedule\.warmup=-1: expected a whole number of 0 or more"),
        ("optim.schedule.name=sequence", r"optim\.schedule\.parts=null: expected a list of one or more parts"),
        ("mixture_weights={nsynth: 1}", r"mixture_weights= mixes several datasets, but shards= names one"),
        ("+deepspeed.fp16.enabled=true", r"deepspeed\.fp16 .* set trainer\.precision"),
        ("deepspeed.zero_optimization.stage=4", r"zero_optimization\.stage=4: expected a whole number from 0 to 3"),
        ("+deepspeed.zero_optimization.offload_param.device=cpu", "weights only at stage 3"),
    ],
)
def test_bad_setting_is_named_with_the_expected_value(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_settings(TrainSettings, [override])


def test_optimizer_is_not_offloaded_without_zero() -> None:
    overrides = ["deepspeed=zero0", "+deepspeed.zero_optimization.offload_optimizer.device=cpu"]
    with pytest.raises(InputError, match="only from stage 1 on"):
        load_settings(TrainSettings, overrides)
