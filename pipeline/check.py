"""Check the settings of one or more commands without running them.

  python -m pipeline.check train +exp=delay_gpt2 model=medium
  python -m pipeline.check preprocess data=jamendo -- train +exp=delay_gpt2 -- generate run=RUN seconds=10

The settings of each command are composed and checked as the command does before any work; no files are opened.
`--` separates commands. Each problem is printed as one line on standard error, and the exit code is then 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence

from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.common.exit_codes import EXIT_USAGE
from pipeline.config.cli import load_settings, with_safe_output
from pipeline.config.conf_files import list_commands


def check_settings(command: str, overrides: Sequence[str]) -> str | None:
    """The first problem of the settings of a command, in one line; None if there is no problem."""
    if command not in list_commands():
        return "no such command; `python -m pipeline` lists them"
    try:
        load_settings(importlib.import_module(f"pipeline.{command}").main.settings, overrides)
    except InputError as error:
        return str(error)
    return None


def split_commands(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The commands that `--` separates, each a list of its name and overrides."""
    command: list[str] = []
    for argument in [*arguments, "--"]:
        if argument == "--":
            yield command or [""]
            command = []
        else:
            command.append(argument)


def main() -> None:
    """Check the commands of the command line, and exit with 2 if any has a problem."""
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h"} & set(arguments):
        print(__doc__)
        return
    code = 0
    for command, *overrides in split_commands(arguments):
        if problem := check_settings(command, overrides):
            code = EXIT_USAGE
            print_error(f"{command}: {problem}")
    if code:
        sys.exit(code)


if __name__ == "__main__":
    with_safe_output(main)
