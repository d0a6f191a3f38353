"""Training settings that are not valid are refused in one line before anything is read."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.config.cli import compose
from pipeline.training import config
from pipeline.training.schedules import lr_multiplier


def number_settings(node: object, prefix: str = "") -> set[str]:
    """Names of all settings that are numbers."""
    if isinstance(node, dict):
        return {
            name for key, value in node.items() for name in number_settings(value, f"{prefix}.{key}" if prefix else key)
        }
    return {prefix} if isinstance(node, (int, float)) and not isinstance(node, bool) else set()


@pytest.mark.parametrize("exp", sorted(file.stem for file in (CONF / "exp").glob("*.yaml")))
def test_defaults_are_valid(exp: str) -> None:
    config.validate(compose("train", [f"+exp={exp}"]))


def test_sequence_schedule_fits_one_argument() -> None:
    parts = "{name: linear, steps: 1000, warmup: 100, floor: 0.1}, {name: constant, scale: 0.1}"
    cfg = compose("train", [f"optim.schedule={{name: sequence, parts: [{parts}]}}"])
    config.validate(cfg)
    schedule = OmegaConf.to_container(cfg.optim.schedule)
    assert [lr_multiplier(step, 3000, schedule) for step in (99, 999, 1000, 2999)] == pytest.approx(
        [1, 0.1, 0.1, 0.1], abs=2e-3
    )


def test_every_number_setting_has_a_range() -> None:
    names = number_settings(OmegaConf.to_container(compose("train")))
    validated = {
        name for name in names if name.split(".")[0] in ("seed", "data", "model", "optim", "trainer", "audio_samples")
    }
    assert {name for name in validated if not name.startswith("optim.schedule.")} <= set(config.RANGES)


def test_every_range_has_a_setting_and_can_refuse() -> None:
    cfg = compose("train")
    for name, (expected, is_valid) in config.RANGES.items():
        OmegaConf.select(cfg, name, throw_on_missing=True)
        assert not any(map(is_valid, (-1, "much", float("nan"), True))), (name, expected)


@pytest.mark.parametrize(
    ("override", "message"),
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
            r"mixture_weights= mixes several datasets, but shards= names one",
        ),
    ],
)
def test_bad_setting_is_named_with_the_expected_value(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.validate(compose("train", [override]))
