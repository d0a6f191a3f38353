"""A value on the command line has the type of its setting, is converted to it, or is refused."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings

ACCEPTED = [
    ("train", "trainer.steps=1e5", 100_000),
    ("train", "trainer.ema=0.999", 0.999),
    ("train", "trainer.preflight=only", "only"),
    ("train", "trainer.compute_budget_pflop=1", 1),
    ("train", "optim.lr=1", 1),
    ("train", "optim.betas=[0.9,0]", [0.9, 0]),
    ("train", "shards={a: x, b: y}", {"a": "x", "b": "y"}),
    ("train", "shards=2024", "2024"),
    ("train", "model.pretrained=null", None),
    ("train", "data.seconds=4", 4),
    ("train", "run=007", "007"),
    ("preprocess", "data.seconds=4", 4),
    ("preprocess", "out=1e3", "1e3"),
    ("preprocess", "encoder_workers=auto", "auto"),
    ("generate", "prompt=2024", "2024"),
    ("generate", "prompt=[1,b.wav]", ["1", "b.wav"]),
    ("generate", "run=2024", "2024"),
    ("generate", "prompt=null", None),
    ("generate", "n=2.0", 2),
    ("generate", "sampling.temperature=[0.5,1]", [0.5, 1]),
    ("evaluate", "temperatures=0.7", [0.7]),
    ("evaluate", "pitch=false", False),
    ("evaluate", "out=${run}/x", "a/x"),
    ("compare", "runs=runs/q", ["runs/q"]),
    ("reconstruct", "codebooks=4", [4]),
]
REFUSED = [
    ("train", "trainer.steps=1.5", "expected a whole number"),
    ("train", "trainer.steps=abc", "expected a whole number"),
    ("train", "trainer.steps=true", "expected a whole number"),
    ("train", "optim.lr=fast", "expected a number"),
    ("train", "optim.lr=nan", "expected a number"),
    ("train", "seed=abc", "expected a whole number"),
    ("train", "run=null", "expected a text"),
    ("train", "optim.betas=[a,b]", "expected a list of 2, each a number"),
    ("train", "trainer.keep_best=maybe", "expected true or false"),
    ("train", "optim.schedule=cosine", r"expected \{NAME: VALUE"),
    (
        "preprocess",
        "data=folder data.segment_seconds=4s",
        "expected a number above 0 or null",
    ),
    ("download", "parallel=2.5", "expected a whole number"),
    ("shards", "clips=many", "expected auto or a whole number"),
    ("generate", "seconds=null", "expected auto or a number"),
    ("generate", "seconds=inf", "expected auto or a number"),
    ("generate", "seconds=long", "expected auto or a number"),
    ("generate", "n=2.5", "expected a whole number"),
    ("generate", "seed=1.5", "expected a whole number"),
    ("generate", "sampling.top_k=1.5", "expected a whole number"),
    ("generate", "sampling.temperature=[hot]", "expected a number of 0 or more or a list, each"),
    ("generate", "prompt=[]", "expected a text, a list of texts"),
    ("generate", "prompt=", "expected a text, a list of texts"),
    ("generate", "audio=[a,b]", "expected a text or null"),
    ("generate", "batch=1.5", "expected auto or a whole number"),
    ("generate", "out=[a,b]", "expected a text"),
    ("evaluate", "temperatures=[]", "expected a list, each a number"),
    ("evaluate", "run=[a,b]", "expected a text"),
    ("compare", "runs=[]", "expected a list of texts"),
    ("reconstruct", "codebooks=[x]", "expected a list, each a whole number"),
    ("dashboard", "codebooks=x", "expected a whole number"),
]


REQUIRED = {
    "evaluate": ["run=a", "shards=b"],
    "compare": ["runs=[a]", "shards=b"],
    "shards": ["action=decode", "shards=b"],
    "reconstruct": ["audio=a"],
}


def parsed(name: str, overrides: list[str]) -> Any:
    """The settings of a command, with values for those that have no default."""
    typed = {override.partition("=")[0] for override in overrides}
    required = [override for override in REQUIRED.get(name, []) if override.partition("=")[0] not in typed]
    return load_settings(importlib.import_module(f"pipeline.{name}").main.settings, [*required, *overrides])


@pytest.mark.parametrize(("name", "override", "expected"), ACCEPTED)
def test_a_value_gets_the_type_of_its_setting(name: str, override: str, expected: Any) -> None:
    value: Any = parsed(name, [override]).to_dict()
    for part in override.partition("=")[0].split("."):
        value = value[part]
    assert value == expected


@pytest.mark.parametrize(("name", "overrides", "expected"), REFUSED)
def test_a_value_of_another_type_is_refused(name: str, overrides: str, expected: str) -> None:
    *_, last = overrides.split(" ")
    with pytest.raises(InputError, match=expected) as caught:
        parsed(name, overrides.split(" "))
    assert str(caught.value).startswith(last.partition("=")[0] + "=") and "\n" not in str(caught.value)


def test_the_last_of_two_values_of_a_setting_counts() -> None:
    assert parsed("generate", ["out=1", "out=b.wav"]).out == "b.wav"
    assert parsed("generate", ["n=x", "n=2"]).n == 2


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
@settings(max_examples=25, deadline=None)
def test_a_text_setting_keeps_what_was_typed(value: Any) -> None:
    assert parsed("generate", [f"out={value}"]).out == f"{value}"
    assert parsed("generate", [f"prompt={value}"]).prompt == f"{value}"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1, max_value=2**53))
@settings(max_examples=25, deadline=None)
def test_a_fraction_is_not_a_whole_number(value: float) -> None:
    if value.is_integer():
        assert parsed("generate", [f"n={value}"]).n == value
    else:
        with pytest.raises(InputError, match="expected a whole number"):
            parsed("generate", [f"n={value}"])
