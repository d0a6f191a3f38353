"""Types of settings: what an annotation expects in words, and conversions whose meaning is certain."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import Field
from pydantic.fields import FieldInfo


class Unit(NamedTuple):
    """The unit of a number, as metadata of a field: `Annotated[float, Field(gt=0), Unit("seconds")]`."""

    name: str


Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelow1 = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0), Unit("seconds")]

_WORDS: dict[object, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null",
    dict: "{NAME: VALUE, ...}",
}  # fmt: skip


def describe(annotation: object, metadata: tuple[object, ...] = ()) -> str:
    """What a type expects, in words: `a whole number of 1 or more`.

    Args:
        annotation: The type: bool, int, float, str, None, Literal, list, dict, a union of these, or Annotated.
        metadata: Limits of a number (`Ge`, `Gt`, `Le`, `Lt`) besides those in the annotation.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], (*metadata, *_flatten(arguments[1:])))
    if origin in (Union, types.UnionType):
        return _join([describe(member, metadata) for member in arguments])
    if origin is Literal:
        return _join([str(choice) for choice in arguments])
    if origin is list:
        item = describe(arguments[0])
        if lengths := [size.min_length for size in metadata if isinstance(size, Len)]:
            return f"a list of {lengths[0]}, each {item}"
        return f"a list of {item.removeprefix('a ')}s, [A,B,...]" if item in _WORDS.values() else f"a list, each {item}"
    if annotation in (int, float):
        return _WORDS[annotation] + _describe_limits(metadata)
    return _WORDS.get(origin or annotation, _WORDS[dict])


def describe_field(field: FieldInfo) -> str:
    """What a field of settings expects, in words."""
    return describe(field.annotation, tuple(field.metadata))


def find_unit(annotation: object, metadata: tuple[object, ...] = ()) -> str | None:
    """The unit of a number, or of one member of a union."""
    for item in metadata:
        if isinstance(item, Unit):
            return item.name
    if get_origin(annotation) is Annotated:
        return find_unit(get_args(annotation)[0], get_args(annotation)[1:])
    return next((unit for member in get_args(annotation) if (unit := find_unit(member))), None)


def coerce(annotation: object, value: object) -> object:
    """A value converted to the type of an annotation where its meaning is certain; else the value itself.

    A number without a fraction is a whole number (1e5), a number or a truth value is a text where only a text is
    expected, and an item is a list of one where only a list is expected.
    """
    members = _members(annotation)
    if isinstance(value, list):
        items = [get_args(member)[0] for member in members if get_origin(member) is list]
        return [coerce(items[0], item) for item in value] if len(items) == 1 else value
    if value is None or isinstance(value, Mapping) or _accepts(members, value):
        return value
    if isinstance(value, float) and value.is_integer() and int in members:
        return int(value)
    if str in members:
        return str(value)
    lists = [member for member in members if get_origin(member) is list]
    if lists:
        item = coerce(get_args(lists[0])[0], value)
        return [item] if _accepts(_members(get_args(lists[0])[0]), item) else value
    return value


def accepts_text(annotation: object, value: object) -> bool:
    """Whether a number or truth value that was typed is a text for this annotation, or for the items of its list."""
    members = _members(annotation)
    if _accepts(members, value) or (isinstance(value, float) and value.is_integer() and int in members):
        return False
    items = [item for member in members if get_origin(member) is list for item in _members(get_args(member)[0])]
    return str in members or (str in items and not _accepts(items, value))


def _members(annotation: object) -> list[Any]:
    """The types of a union, without metadata."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _members(arguments[0])
    if origin in (Union, types.UnionType):
        return [inner for member in arguments for inner in _members(member)]
    return [annotation]


def _accepts(members: list[Any], value: object) -> bool:
    """Whether a scalar has one of these types as it is."""
    for member in members:
        if get_origin(member) is Literal and value in get_args(member) and type(value) in map(type, get_args(member)):
            return True
        if type(value) is member or (member is float and type(value) is int):
            return True
    return False


def _flatten(metadata: tuple[object, ...]) -> tuple[object, ...]:
    """Metadata with that inside `Field(...)`."""
    return tuple(inner for item in metadata for inner in (item.metadata if isinstance(item, FieldInfo) else [item]))


def _describe_limits(metadata: tuple[object, ...]) -> str:
    low: Any = next((item.ge for item in metadata if isinstance(item, Ge)), None)
    above: Any = next((item.gt for item in metadata if isinstance(item, Gt)), None)
    high: Any = next((item.le for item in metadata if isinstance(item, Le)), None)
    below: Any = next((item.lt for item in metadata if isinstance(item, Lt)), None)
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [f"of {low:g} or more"] if low is not None else []
    parts += [f"above {above:g}"] if above is not None else []
    parts += [f"{'' if parts else 'of '}at most {high:g}"] if high is not None else []
    parts += [f"below {below:g}"] if below is not None else []
    return f" {' and '.join(parts)}" if parts else ""


def _join(parts: list[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"
