"""What the files of conf/ define: commands, groups, choices and default values."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from pipeline.common.paths import CONF
from pipeline.common.registry import plugin_conf_folders

GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
EXPERIMENTS = "exp"  # the group without a default, added by +exp=CHOICE
_QUIET = "hydra_quiet"  # the one file at the root of conf/ that belongs to no command


def list_commands() -> list[str]:
    """The commands that have settings, sorted."""
    return sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != _QUIET)


def list_groups(command: str) -> list[str]:
    """The groups of `conf/{command}.yaml`, of each of which a command line selects one choice."""
    listed = yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"]
    return [group for line in listed if isinstance(line, dict) for group in line]


def list_choices(group: str) -> list[str]:
    """The choices of a group, those of plug-ins included, sorted."""
    return sorted(file.stem for file in _choice_files(group))


def find_file(group: str, choice: str) -> Path:
    """The file of a choice; with an empty group, of a command. The first folder that has it counts, as for Hydra."""
    files = [folder / group / f"{choice}.yaml" for folder in (CONF, *plugin_conf_folders())]
    return next((file for file in files if file.is_file()), files[0])


def _choice_files(group: str) -> list[Path]:
    return [file for folder in (CONF, *plugin_conf_folders()) for file in (folder / group).glob("*.yaml")]


@functools.cache
def list_settings(command: str) -> set[str]:
    """The dotted names of all settings of a command, those of every choice of its groups included."""
    names: set[str] = set()

    def collect(prefix: str, node: object) -> None:
        names.add(prefix)
        if isinstance(node, dict):
            for key, value in node.items():
                collect(f"{prefix}.{key}" if prefix else str(key), value)

    root = yaml.safe_load((CONF / f"{command}.yaml").read_text()) or {}
    collect("", {key: value for key, value in root.items() if key != "defaults"})
    for group in list_groups(command):
        for file in _choice_files(group):
            collect(group, yaml.safe_load(file.read_text()) or {})
    return names - {""}


@functools.cache
def list_open_settings(command: str) -> set[str]:
    """The settings of `conf/{command}.yaml` whose keys are up to the user: their default is `{}`."""
    root = yaml.safe_load((CONF / f"{command}.yaml").read_text()) or {}
    return {name for name, value in root.items() if value == {}}
