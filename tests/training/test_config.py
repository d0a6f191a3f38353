"""What the settings of training may be, said in one line before anything is read."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.config.cli import compose
from pipeline.training import config
from pipeline.training.schedules import lr_multiplier


def numbers(node: object, prefix: str = "") -> set[str]:
    """The names of all settings that are numbers."""
    if isinstance(node, dict):
        return {name for key, value in node.items() for name in numbers(value, f"{prefix}.{key}" if prefix else key)}
    return {prefix} if isinstance(node, (int, float)) and not isinstance(node, bool) else set()


@pytest.mark.parametrize("exp", sorted(file.stem for file in (CONF / "exp").glob("*.yaml")))
def test_the_defaults_are_within_the_limits(exp: str) -> None:
    config.validate(compose("train", [f"+exp={exp}"]))


def test_a_sequence_of_schedules_is_given_in_one_word() -> None:
    parts = "{name: linear, steps: 1000, warmup: 100, floor: 0.1}, {name: constant, scale: 0.1}"
    cfg = compose("train", [f"optim.schedule={{name: sequence, parts: [{parts}]}}"])
    config.validate(cfg)
    schedule = OmegaConf.to_container(cfg.optim.schedule)
    assert [lr_multiplier(step, 3000, schedule) for step in (99, 999, 1000, 2999)] == pytest.approx(
        [1, 0.1, 0.1, 0.1], abs=2e-3
    )


def test_every_number_of_training_has_a_limit() -> None:
    told = numbers(OmegaConf.to_container(compose("train")))
    groups = {
        name for name in told if name.split(".")[0] in ("seed", "data", "model", "optim", "trainer", "audio_samples")
    }
    assert {name for name in groups if not name.startswith("optim.schedule.")} <= set(config.RANGES)


def test_every_limit_is_of_a_setting_and_refuses_something() -> None:
    cfg = compose("train")
    for name, (expected, holds) in config.RANGES.items():
        OmegaConf.select(cfg, name, throw_on_missing=True)
        assert not holds(-1) and not holds("much") and not holds(float("nan")) and not holds(True), (name, expected)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.steps=0", r"trainer\.steps=0: expected a whole number of 1 or more"),
        ("trainer.steps=1.5", r"trainer\.steps=1\.5: expected a whole number"),
        ("trainer.micro_batch=0", r"trainer\.micro_batch=0: expected"),
        ("data.seconds=-2", r"data\.seconds=-2: expected a number above 0"),
        ("model.dropout=2", r"model\.dropout=2: expected a number of 0 or more and below 1"),
        ("optim.betas=[0.9]", r"optim\.betas=\[0\.9\]: expected two numbers"),
        ("audio_samples.temperatures=[hot]", r"audio_samples\.temperatures=\[hot\]: expected a list of numbers"),
        ("optim.schedule.name=cosin", r"optim\.schedule\.name=cosin: expected one of"),
        (
            "mixture_weights={nsynth: 1}",
            r"mixture_weights= shares steps out among several caches, and shards= names one",
        ),
    ],
)
def test_what_no_run_could_have_is_named_with_what_is_expected(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.validate(compose("train", [word]))
