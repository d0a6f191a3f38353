"""A folder for each job of a sweep (`-m a=1,2`), so that no job writes where another one does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError, redact

# where a command writes, if not in one place for all jobs of a sweep (the parts of preprocessing share a cache)
OUTPUTS = {"train": "run", "generate": "out", "evaluate": "out", "reconstruct": "out", "compare": "out"}
_IN_NAMES = {"exp", "prompt", "audio"}  # an experiment names its run, and files are named after their prompts


def swept_settings(overrides: Sequence[str]) -> list[str]:
    """The settings that a command line gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def separate_outputs(command: str, cfg: DictConfig, swept: Sequence[str], overrides: Sequence[str]) -> None:
    """Make the output folder of one job differ from those of the others.

    The default folder gets a subfolder named after the swept settings that are not part of its name already. Raises
    InputError where the folder is on the command line and lacks one of them.

    Args:
        command: the command's name.
        cfg: the job's config, which is changed.
        swept: the settings that have several values.
        overrides: the job's own overrides, as `name=value`.
    """
    setting = OUTPUTS.get(command)
    if setting is None or setting not in cfg:
        return
    used = _references(OmegaConf.to_container(cfg, resolve=False), setting) | {setting}
    missing = [name for name in swept if name not in _IN_NAMES | used and not name.startswith("hydra")]
    missing = [name for name in missing if not any(key.startswith(f"{name}.") for key in used)]
    if not missing or "hydra:" in used:
        return
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
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
    """The settings whose values a setting's text refers to, directly or through others."""
    text: Any = settings
    for key in name.split("."):
        text = text.get(key) if isinstance(text, dict) else None
    if not isinstance(text, str):
        return set()
    found = set(re.findall(r"\$\{(hydra:|[\w.]+)", text))
    return found.union(*(_references(settings, key) for key in found if key != name))
