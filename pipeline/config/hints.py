"""Error messages about a command line: the fault, and what to type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from pipeline.common.messages import missing_setting, unknown_choice, unknown_setting
from pipeline.common.settings import hydra_quote
from pipeline.config.conf_files import EXPERIMENTS, GROUPS, list_choices, list_commands, list_groups, list_settings


def explain_error(command: str, error: Exception) -> str:
    """The message of an error of Hydra or OmegaConf in one line, with the nearest setting or with what to type.

    Args:
        command: The command whose settings were composed.
        error: The error that Hydra or OmegaConf raised.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    line = " ".join(part.strip() for part in str(error).splitlines() if part.strip())
    ambiguous = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires| 1\.)", line)
    if isinstance(error, OverrideParseException) or ambiguous:
        return quoting_hint(ambiguous[1] if ambiguous else str(error.override))  # type: ignore[attr-defined]
    choice = re.search(r"Could not find '([^']+)/([^'/]*)'", line)
    if isinstance(error, MissingConfigException) and choice:
        return explain_unknown_choice(choice[1], choice[2], error.options)
    repeated = re.search(r"Multiple values for (\S+)\. ", line)
    if repeated:
        return f"{_as_typed(repeated[1])}: given more than once; choose one"
    unknown = re.search(r"Could not override '([^']+)'", line) or re.search(r"Key '([^']+)' is not in struct", line)
    if unknown:
        return explain_unknown_setting(command, unknown[1])
    missing = re.search(r"(?:Missing mandatory value|full_key): ([\w.]+)", line)
    if "Missing mandatory value" in line and missing:
        return missing_setting(missing[1])
    return line


def explain_unknown_setting(command: str, setting: str) -> str:
    """The message about a setting that a command does not have, with the setting or the command that may be meant."""
    hint = ""
    if setting == EXPERIMENTS and command == "train":
        hint = "; add an experiment with a plus: +exp=delay_gpt2"
    elif setting in GROUPS:
        others = ", ".join(other for other in list_commands() if setting in list_groups(other))
        hint = f" of this command; {setting}=CHOICE is a setting of {others}" if others else ""
    return unknown_setting(setting, () if setting in GROUPS else list_settings(command), hint)


def explain_unknown_choice(group: str, choice: str, choices: Iterable[str] | None = None) -> str:
    """The message about a choice that a group does not have, with the nearest one and all of them."""
    return unknown_choice(_as_typed(group), choice, choices or list_choices(group))


def quoting_hint(override: str) -> str:
    """The message about `name=value` that Hydra cannot parse: how to quote it for Hydra and for the shell."""
    setting, equals, value = override.partition("=")
    if not equals:
        return f"{override}: settings are given as name=value"
    if value[:1] in ("[", "{"):
        return (
            f"{override}: quote the names with special characters inside the list, and the whole setting for the "
            f"shell: \"{setting}=['a (1).wav',b.wav]\""
        )
    quoted = f"{setting}={hydra_quote(value)}"
    shell = shlex.quote(quoted) if set('"$`\\!') & set(value) else f'"{quoted}"'
    several = " ([A,B] is a list, -m sweeps)" if "," in value else ""
    return f"{override}: quote a value with special characters, and the whole setting for the shell: {shell}{several}"


def _as_typed(group: str) -> str:
    """A group as it is typed: an experiment has no default, so it is added with a plus."""
    return f"+{group}" if group == EXPERIMENTS else group
