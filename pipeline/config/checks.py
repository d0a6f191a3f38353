"""Checks of a command's settings that open no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.errors import InputError
from pipeline.config.cli import compose
from pipeline.config.conf_files import list_commands
from pipeline.config.hints import explain_error, missing_setting


def find_problem(
    command: str, overrides: Sequence[str], validators: Sequence[Callable[[DictConfig], None]] = ()
) -> str | None:
    """The first problem of a command line, in one line.

    Args:
        command: The command.
        overrides: Its settings, as `name=value`.
        validators: Functions of the composed config that raise InputError for values that the command refuses.

    Returns:
        The message, or None if there is no problem.
    """
    from hydra.errors import HydraException

    if command not in list_commands():
        return "no such command; `python -m pipeline` lists them"
    try:
        cfg = compose(command, list(overrides))
        for setting in sorted(OmegaConf.missing_keys(cfg)):
            return missing_setting(setting)
        OmegaConf.to_container(cfg, resolve=True)
        for validate in validators:
            validate(cfg)
    except InputError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explain_error(command, error)
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
