"""Typed settings: conversions, messages, and extensions selected by name."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from pipeline.common.errors import InputError
from pipeline.common.setting_types import Fraction, PositiveInt, Seconds
from pipeline.common.settings import Choice, Settings, parse_settings


class ShapeSettings(Settings):
    """A kind of extension."""

    name: str


class Square(ShapeSettings):
    """One extension."""

    side: PositiveInt


class Shapes:
    """A registry of one shape."""

    classes: ClassVar[dict[str, type[Settings]]] = {"square": Square}

    def get(self, name: str, setting: str) -> type[Settings]:
        """The class of a name."""
        if name not in self.classes:
            raise InputError(f"{setting}={name}: choices are square")
        return self.classes[name]


class Inner(Settings):
    """Nested settings."""

    share: Fraction
    shape: Annotated[ShapeSettings, Choice(Shapes())]


class Outer(Settings):
    """Settings of every type."""

    steps: PositiveInt
    seconds: Seconds | None
    batch: PositiveInt | Literal["auto"]
    title: str
    files: list[str] | None
    temperatures: list[Annotated[float, Field(ge=0)]]
    inner: Inner
    input_file: str | None = Field(alias="from")


VALUES = {
    "steps": 3, "seconds": None, "batch": "auto", "title": "a", "files": None, "temperatures": [0.5], "from": None,
    "inner": {"share": 0.5, "shape": {"name": "square", "side": 2}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 1e5, 100_000),
        ("seconds", 2, 2.0),
        ("batch", 4, 4),
        ("title", 2024, "2024"),
        ("files", 7, ["7"]),
        ("files", [1, "b"], ["1", "b"]),
        ("temperatures", 1, [1]),
        ("from", "a.json", "a.json"),
    ],
)
def test_values_with_one_meaning_are_converted(name: str, value: object, expected: object) -> None:
    parsed = parse_settings(Outer, {**VALUES, name: value})
    assert parsed.to_dict()[name] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0: expected a whole number of 1 or more"),
        ({"steps": 1.5}, "steps=1.5: expected a whole number of 1 or more"),
        ({"steps": True}, "steps=true: expected a whole number of 1 or more"),
        ({"seconds": -1}, "seconds=-1: expected a number above 0 or null"),
        ({"seconds": float("nan")}, "seconds=nan: expected a number above 0 or null"),
        ({"batch": "all"}, "batch=all: expected a whole number of 1 or more or auto"),
        ({"title": None}, "title=null: expected a text"),
        ({"files": {"a": 1}}, "files={a: 1}: expected a list of texts, [A,B,...] or null"),
        ({"temperatures": [0.5, -1]}, "temperatures=[0.5, -1]: expected a list, each a number of 0 or more"),
        ({"tilte": "b"}, "there is no setting 'tilte'; did you mean 'title'?"),
        ({"inner": {**VALUES["inner"], "share": 2}}, "inner.share=2: expected a number from 0 to 1"),  # type: ignore[dict-item]
        ({"inner": {"share": 0}}, "the setting 'inner.shape' has no default"),
        ({"inner": {"share": 0, "shape": {"name": "circle"}}}, "inner.shape.name=circle: choices are square"),
        (
            {"inner": {"share": 0, "shape": {"name": "square", "side": 0}}},
            "inner.shape.side=0: expected a whole number",
        ),
        ({"inner": 3}, "inner=3: expected {NAME: VALUE, ...}"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_settings(Outer, {**VALUES, **change})
    assert str(error.value).startswith(message)


def test_a_name_selects_the_class_of_nested_settings() -> None:
    shape = parse_settings(Outer, VALUES).inner.shape
    assert isinstance(shape, Square) and shape.side == 2
    assert parse_settings(Outer, VALUES).to_dict() == VALUES
