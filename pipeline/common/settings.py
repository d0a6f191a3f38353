"""Typed settings: their base class, reading them from plain values, and writing them as on a command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from pipeline.common.errors import InputError, redact
from pipeline.common.messages import missing_setting, unknown_setting
from pipeline.common.setting_types import coerce, describe_field


class Settings(BaseModel):
    """Typed settings, read from what Hydra composed. The fields have no defaults: conf/*.yaml is their one home.

    Values keep their types, but for conversions whose meaning is certain; see `setting_types.coerce`. Besides fields,
    a class may have facts of what it configures as ClassVars, and methods that build it.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), populate_by_name=True
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _parse_field(cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        name = str(info.field_name)
        field = cls.model_fields[name]
        setting = f"{(info.context or {}).get('prefix', '')}{field.alias or name}"
        model = settings_class(field.annotation, tuple(field.metadata), value, setting)
        if model is not None and isinstance(value, Mapping):
            return validate(parse_settings(model, value, f"{setting}."))
        parsed = validate(coerce(field.annotation, value))
        return value if isinstance(parsed, float) and value == parsed else parsed  # records keep 1 apart from 1.0

    @classmethod
    def with_extensions(cls) -> type[Settings]:
        """The class with the fields that registered extensions add; by default the class itself."""
        return cls

    def to_dict(self) -> dict[str, object]:
        """The values as plain data, from which `parse_settings` reads the same settings."""
        return self.model_dump(by_alias=True, serialize_as_any=True)


_S = TypeVar("_S", bound=Settings)


class CommandSettings(Settings):
    """The settings of a command, whose file in conf/ has the name `command`."""

    command: ClassVar[str]

    plugins: list[str]


class SettingsRegistry(Protocol):
    """A registry whose entries are classes of settings; see `pipeline.common.registry`."""

    def get(self, name: str, setting: str) -> type[Settings]:
        """The entry of a name. Raises InputError for an unknown name, which was given for `setting`."""


class Choice:
    """Metadata of a field with the settings of an extension, selected by their `name`.

    `codec: Annotated[CodecSettings, Choice(CODECS)]`
    """

    def __init__(self, registry: SettingsRegistry) -> None:
        self.registry = registry


def settings_class(
    annotation: object, metadata: tuple[object, ...], value: object, setting: str
) -> type[Settings] | None:
    """The class of nested settings, which `value["name"]` selects where the field is a choice; None for other fields.

    Raises:
        InputError: The name is unknown.
    """
    choice = next((item for item in metadata if isinstance(item, Choice)), None)
    if choice is not None and isinstance(value, Mapping):
        return choice.registry.get(str(value.get("name")), f"{setting}.name")
    members = () if get_origin(annotation) is list else get_args(annotation)  # of a union
    for member in (annotation, *members):
        if get_origin(member) is None and isinstance(member, type) and issubclass(member, Settings):
            return member.with_extensions()
    return None


def parse_settings(model: type[_S], values: Mapping[str, object], prefix: str = "") -> _S:
    """Settings from plain values.

    Args:
        model: The class of the settings.
        values: The values of all fields by name; for nested settings a dict.
        prefix: The dotted name of these settings within those of a command, with a dot at its end: `optim.`.

    Raises:
        InputError: A value is not valid; the message has the dotted name, the value, and what is expected.
    """
    try:
        return model.model_validate(dict(values), context={"prefix": prefix})
    except ValidationError as error:
        raise InputError(_explain(model, error, values, prefix)) from None


def _explain(model: type[Settings], error: ValidationError, values: Mapping[str, object], prefix: str) -> str:
    """The first problem of settings in one line."""
    details = error.errors()[0]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    name = str(details["loc"][0]) if details["loc"] else ""
    setting = f"{prefix}{name}"
    if details["type"] == "missing":
        return missing_setting(setting)
    fields = {field.alias or key: field for key, field in model.model_fields.items()}
    if details["type"] == "extra_forbidden":
        return unknown_setting(setting, [f"{prefix}{field}" for field in fields])
    expected = f"expected {describe_field(fields[name])}" if cause is None else str(cause)
    return f"{setting}={format_value(values.get(name))}: {expected}"


def format_value(value: object) -> str:
    """A value as it is typed on a command line: null, true, [A, B], {NAME: VALUE}."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {format_value(item)}' for name, item in value.items())}}}"
    return str(value)


def hydra_quote(text: str) -> str:
    """A text in Hydra's quotes, in which a backslash is special only before a quote."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def format_override(setting: str, value: Any) -> str:
    """A setting as it is typed for Hydra, `name=value`; quoting for the shell is up to the caller."""
    text = str(value)
    is_plain = re.fullmatch(r"[\w./:@-]+", text, re.ASCII)
    return f"{setting}={text if is_plain else hydra_quote(text)}"


def format_command(command: str, **settings: object) -> str:
    """A command with settings, quoted for a shell, without secrets."""
    overrides = (format_override(name, redact(str(value))) for name, value in settings.items())
    return shlex.join(["python", "-m", f"pipeline.{command}", *overrides])


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names: `optim.lr`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= flatten_settings(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
