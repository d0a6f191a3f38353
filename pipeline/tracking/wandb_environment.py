"""W&B's environment variables, which have the same meaning here as in other programs that use W&B."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# settings of conf/tracking/wandb.yaml; WANDB_MODE is read at each start, since a requeued job may have a network
VARIABLES = {
    "entity": "WANDB_ENTITY",
    "project": "WANDB_PROJECT",
    "title": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "notes": "WANDB_NOTES",
}
TAGS = "WANDB_TAGS"
_OLD_MODES = {"dryrun": "offline", "run": "online"}
_data_folders: set[str] = set()  # set by earlier runs of a sweep in this process
_YES = {"1", "true", "yes", "on"}


def prepare_folders(folder: Path) -> None:
    """Set the folders that W&B writes to: `folder` for data that waits for a sync, and for all else if needed.

    The home folder is not writable for an unknown user in a container, whose home is `/`.
    """
    try:
        Path.home()
    except RuntimeError:  # a user without a name or HOME; W&B does not start without a home
        os.environ["HOME"] = str(folder)
    data_dir = os.environ.get("WANDB_DATA_DIR")
    if data_dir and data_dir not in _data_folders:
        os.environ["WANDB_DATA_DIR"] = str(Path(data_dir).absolute())
    else:
        os.environ["WANDB_DATA_DIR"] = str((folder / "data").absolute())
        _data_folders.add(os.environ["WANDB_DATA_DIR"])
    for name, default in (("WANDB_CACHE_DIR", "~/.cache/wandb"), ("WANDB_CONFIG_DIR", "~/.config/wandb")):
        if not os.environ.get(name) and not _is_writable(default):
            os.environ[name] = str(folder / name.split("_")[1].lower())


def _is_writable(folder: str) -> bool:
    """Whether a folder is writable or can be created."""
    path = Path(folder).expanduser()
    nearest = next(parent for parent in (path, *path.parents) if os.access(parent, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def settings_from_environment(overridden: Collection[str]) -> dict[str, Any]:
    """The settings of `tracking` from W&B's variables, except those on the command line.

    Args:
        overridden: The dotted names of the settings on the command line.
    """
    settings: dict[str, Any] = {name: os.environ[key] for name, key in VARIABLES.items() if os.environ.get(key)}
    if os.environ.get(TAGS):
        settings["tags"] = os.environ[TAGS].split(",")
    return {name: value for name, value in settings.items() if f"tracking.{name}" not in overridden}


def mode_from_environment(settings: Mapping[str, Any]) -> str:
    """The mode of a run: auto, online, offline or disabled. A `tracking.mode` other than auto has priority."""
    mode = settings.get("mode", "auto")
    if mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in _YES:
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or mode if mode == "auto" else mode
    return _OLD_MODES.get(mode, mode)
