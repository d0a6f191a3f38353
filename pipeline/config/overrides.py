"""Overrides of a command line, `name=value`: which are accepted, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from pydantic.fields import FieldInfo

from pipeline.common.errors import InputError
from pipeline.common.setting_types import accepts_text, describe_field
from pipeline.common.settings import CommandSettings, Settings, settings_class
from pipeline.config.conf_files import EXPERIMENTS, list_groups, list_open_settings, list_settings
from pipeline.config.hints import explain_unknown_choice, explain_unknown_setting


def check_overrides(command: str, overrides: Sequence[str]) -> None:
    """Raises InputError for overrides that Hydra would accept but nothing reads, or would refuse with a traceback."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return  # Hydra raises it again when it composes, and `explain_error` says what to type
    groups = {*list_groups(command), EXPERIMENTS}
    for override in parsed:
        key, text = override.key_or_group, (override.input_line or "").partition("=")[2]
        if not key:
            raise InputError(f"{override.input_line}: settings are given as name=value")
        is_choice = key in groups and not override.is_delete() and not override.is_sweep_override()
        if is_choice and not isinstance(override.value(), (str, list, dict)):
            raise InputError(explain_unknown_choice(key, text))
        is_added = override.is_add() or override.is_force_add()
        is_read_elsewhere = key in groups or key.startswith(("hydra", "deepspeed."))
        is_read_elsewhere = is_read_elsewhere or _open_setting(command, key)
        if is_added and not is_read_elsewhere and key not in list_settings(command):
            raise InputError(explain_unknown_setting(command, key))


def add_open_settings(command: str, overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra needs them: with plus signs before a setting whose keys are up to the user.

    These settings are `{}` in conf/: `conditions.pitch=60` becomes `++conditions.pitch=60`.
    """
    return [f"++{each}" if _open_setting(command, each.partition("=")[0]) else each for each in overrides]


def _open_setting(command: str, setting: str) -> bool:
    """Whether a dotted name is a setting whose keys are up to the user, or one of these keys."""
    return setting.partition(".")[0] in list_open_settings(command)


def keep_typed_texts(model: type[CommandSettings], cfg: DictConfig, overrides: Sequence[str]) -> set[str]:
    """Restore texts that look like numbers, in place: Hydra parses run=1e3 and run=007 as numbers.

    Args:
        model: The class of a command's settings.
        cfg: Its composed config, which is changed.
        overrides: The overrides from which it was composed.

    Returns:
        The dotted names of the settings on the command line.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    last = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(list(overrides))}
    values = OmegaConf.to_container(cfg, resolve=False)  # their names select the classes of nested settings
    for setting, override in last.items():
        if override.is_delete() or override.is_sweep_override():
            continue
        value, field = override.value(), find_field(model, values, setting)
        if field is not None and value == "":
            raise InputError(f"{setting}=: expected {describe_field(field)}")
        if field is not None and isinstance(value, (int, float)) and accepts_text(field.annotation, value):
            OmegaConf.update(cfg, setting, (override.input_line or "").partition("=")[2].strip())
    return set(last)


def find_field(model: type[Settings], values: object, setting: str, prefix: str = "") -> FieldInfo | None:
    """The field of a setting.

    Args:
        model: The class of the settings.
        values: Their values, which select the classes of nested settings.
        setting: The dotted name of the setting in `model`.
        prefix: The dotted name of `model` itself, for messages.

    Raises:
        InputError: The name of an extension around the setting is unknown.
    """
    name, _, rest = setting.partition(".")
    field = next((field for key, field in model.model_fields.items() if name in (key, field.alias)), None)
    if field is None or not rest:
        return field
    value = values.get(name) if isinstance(values, Mapping) else None
    nested = settings_class(field.annotation, tuple(field.metadata), value, f"{prefix}{name}")
    return None if nested is None else find_field(nested, value, rest, f"{prefix}{name}.")
