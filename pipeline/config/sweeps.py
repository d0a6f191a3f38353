"""Output folders of a sweep (`-m a=1,2`): one per job, so that no two jobs write the same files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError, redact

# the setting of a command's output; not of preprocess, whose parts write one dataset together
OUTPUTS = {"train": "run", "generate": "out", "evaluate": "out", "reconstruct": "out", "compare": "out"}
_IN_NAMES = {"exp", "prompt", "audio"}  # an experiment names its run, and a file is named after its prompt


def swept_settings(overrides: Sequence[str]) -> list[str]:
    """The settings that have several values on a command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def separate_outputs(command: str, cfg: DictConfig, swept: Sequence[str], overrides: Sequence[str]) -> None:
    """Set the output of one job to a folder that no other job of the sweep has.

    A default folder gets a subfolder named after the swept settings that are not in its name.

    Args:
        command: The name of the command.
        cfg: The config of the job, which is changed.
        swept: The settings that have several values.
        overrides: The overrides of the job, as `name=value`.

    Raises:
        InputError: The folder is on the command line and lacks a swept setting.
    """
    setting = OUTPUTS.get(command)
    if setting is None or setting not in cfg:
        return
    used = _references(OmegaConf.to_container(cfg, resolve=False), setting) | {setting}
    missing = [name for name in swept if name not in _IN_NAMES | used and not name.startswith("hydra")]
    missing = [name for name in missing if not any(key.startswith(f"{name}.") for key in used)]
    if not missing or "hydra:" in used:
        return
    typed = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if setting in typed:
        name = f"{missing[0]}.name" if OmegaConf.is_dict(OmegaConf.select(cfg, missing[0])) else missing[0]
        path = PurePath(cfg[setting])
        stem, suffix = (str(path), "") if setting == "run" else (str(path.with_suffix("")), path.suffix)
        example = f"'{setting}={stem}-${{{name}}}{suffix}'"
        raise InputError(
            f"{setting}={cfg[setting]}: the jobs of this sweep over {', '.join(missing)} would write into one folder; "
            f"name the setting in it ({example}), or leave {setting}= out"
        )
    parts = [re.sub(r"[^\w.+-]+", "_", f"{name}-{redact(typed[name])}") for name in missing]
    OmegaConf.update(cfg, setting, f"{cfg[setting]}/{'_'.join(parts)[:200]}")


def _references(settings: Any, name: str) -> set[str]:
    """The settings that the value of a setting refers to, directly or through others."""
    text: Any = settings
    for key in name.split("."):
        text = text.get(key) if isinstance(text, dict) else None
    if not isinstance(text, str):
        return set()
    direct = set(re.findall(r"\$\{(hydra:|[\w.]+)", text))
    return direct.union(*(_references(settings, key) for key in direct if key != name))
