"""W&B's own environment variables, which mean for our runs what they mean for every other program that uses W&B."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# of conf/tracking/wandb.yaml; WANDB_MODE is read at each start of a run, since a requeue may have a network
VARIABLES = {
    "entity": "WANDB_ENTITY",
    "project": "WANDB_PROJECT",
    "title": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "notes": "WANDB_NOTES",
}
TAGS = "WANDB_TAGS"
_SAME_MODE = {"dryrun": "offline", "run": "online"}  # older names
_data_folders: set[str] = set()  # of the runs of a sweep in this process
_YES = {"1", "true", "yes", "on"}


def prepare_folders(folder: Path) -> None:
    """Name folders for what W&B writes: data that waits for a sync in `folder`, and all if home is not writable.

    The home of an unknown user in a container is `/`.
    """
    try:
        Path.home()
    except RuntimeError:  # a user without a name or HOME; W&B does not start without a home
        os.environ["HOME"] = str(folder)
    given = os.environ.get("WANDB_DATA_DIR")
    if given and given not in _data_folders:
        os.environ["WANDB_DATA_DIR"] = str(Path(given).absolute())
    else:
        os.environ["WANDB_DATA_DIR"] = str((folder / "data").absolute())
        _data_folders.add(os.environ["WANDB_DATA_DIR"])
    for name, default in (("WANDB_CACHE_DIR", "~/.cache/wandb"), ("WANDB_CONFIG_DIR", "~/.config/wandb")):
        if not os.environ.get(name) and not _is_writable(default):
            os.environ[name] = str(folder / name.split("_")[1].lower())


def _is_writable(folder: str) -> bool:
    """Whether a folder is writable, or could be made."""
    path = Path(folder).expanduser()
    nearest = next(parent for parent in (path, *path.parents) if os.access(parent, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def settings_from_environment(typed: Collection[str]) -> dict[str, Any]:
    """Settings of `tracking` that W&B's variables give; what was typed on the command line wins.

    Args:
        typed: dotted names of the settings on the command line.
    """
    found: dict[str, Any] = {name: os.environ[key] for name, key in VARIABLES.items() if os.environ.get(key)}
    if os.environ.get(TAGS):
        found["tags"] = os.environ[TAGS].split(",")
    return {name: value for name, value in found.items() if f"tracking.{name}" not in typed}


def mode_from_environment(settings: Mapping[str, Any]) -> str:
    """The mode of a run: auto, online, offline or disabled. `tracking.mode`, unless it is auto, wins."""
    mode = settings.get("mode", "auto")
    if mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in _YES:
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or mode if mode == "auto" else mode
    return _SAME_MODE.get(mode, mode)
