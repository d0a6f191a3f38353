"""`--help` of a command: its docstring, its groups, and every setting with its default, type, unit and explanation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.common.setting_types import describe_field, find_unit
from pipeline.common.settings import CommandSettings, format_value, settings_class
from pipeline.config.conf_files import EXPERIMENTS, find_file, list_choices, list_groups
from pipeline.config.overrides import find_field

_COLUMNS = 80
_INDENT = " " * 6
_KEY = re.compile(r"( *)([\w.-]+):(?: |$)")
_COMMENT = re.compile(r"(?:^|(?<= ))#+ ?(.*)")


def format_help(
    model: type[CommandSettings],
    docstring: str,
    values: Mapping[str, object],
    choices: Mapping[str, str],
) -> str:
    """The help of a command, with the settings of the choices that are on its command line.

    Args:
        model: The class of the command's settings.
        docstring: What the command does.
        values: The composed settings, interpolations not resolved.
        choices: The choice of each group of the command.
    """
    groups = sorted({*list_groups(model.command), *([EXPERIMENTS] if model.command == "train" else [])})
    lines = [docstring.strip(), "", "Groups (group=choice):"]
    lines += [f"  {'+' if group == EXPERIMENTS else ''}{group}: {', '.join(list_choices(group))}" for group in groups]
    explanations = read_explanations(find_file("", model.command))
    own = {name: value for name, value in values.items() if name not in choices}
    lines += ["", "Settings (name=default   [what is expected]):", *_format_settings(model, values, own, explanations)]
    for group, choice in sorted(choices.items()):
        comments = read_explanations(find_file(group, choice))
        explanations |= {f"{group}.{name}" if name else group: text for name, text in comments.items()}
        lines += ["", *textwrap.wrap(f"{group}={choice}: {explanations.get(group, '')}", _COLUMNS)]
        chosen = values[group]
        assert isinstance(chosen, Mapping)
        shown = {name: value for name, value in chosen.items() if name != "name"}
        lines += _format_settings(model, values, shown, explanations, f"{group}.")
    lines += ["", "Hydra's own flags: --cfg job (show the settings of a run), -m (sweep)."]
    return "\n".join(lines)


def read_explanations(file: Path) -> dict[str, str]:
    """The comments of a file of conf/ by the dotted names of their settings; that at its top by the name "".

    A comment follows its setting on the same line, and continues below in lines that begin in its column. Other lines
    of comments belong to the next setting.
    """
    comments: dict[str, list[str]] = {"": []}
    parents: list[tuple[int, str]] = []  # indentation and name of the settings around a line
    above: list[str] = []
    column = 0  # of the last setting's comment
    for line in file.read_text().splitlines():
        match, comment = _KEY.match(line), _COMMENT.search(line)
        text = [comment[1]] if comment else []
        if match:
            parents = [parent for parent in parents if parent[0] < len(match[1])]
            parents.append((len(match[1]), match[2]))
            comments[_dotted(parents)] = [*above, *text]
            above, column = [], comment.start() if comment else len(line)
        elif comment and parents and comment.start() >= column:
            comments[_dotted(parents)] += text
        elif comment:
            (above if parents else comments[""]).extend(text)
    return {name: " ".join(texts) for name, texts in comments.items()}


def _dotted(parents: Sequence[tuple[int, str]]) -> str:
    return ".".join(name for _, name in parents)


def _format_settings(
    model: type[CommandSettings],
    values: Mapping[str, object],
    shown: Mapping[str, object],
    explanations: Mapping[str, str],
    prefix: str = "",
) -> Iterator[str]:
    """Each setting: its name and default, what is expected, and below them the explanation."""
    for name, value in shown.items():
        setting = f"{prefix}{name}"
        field = find_field(model, values, setting)
        nested = field and settings_class(field.annotation, tuple(field.metadata), value, setting)
        if nested and isinstance(value, Mapping):
            yield from _format_settings(model, values, value, explanations, f"{setting}.")
            continue
        unit = field and find_unit(field.annotation, tuple(field.metadata))
        expected = f"   [{describe_field(field)}{f', in {unit}' if unit else ''}]" if field else ""
        yield from _wrap(f"{setting}={format_value(value)}{expected}", "  ")
        yield from _wrap(explanations.get(setting, ""), _INDENT)


def _wrap(text: str, first_indent: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=first_indent, subsequent_indent=_INDENT)
