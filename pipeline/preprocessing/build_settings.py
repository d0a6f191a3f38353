"""The settings that the contents of a dataset depend on, and how they are recorded in its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.audio import amplitude
from pipeline.audio.audio_io import RESAMPLER
from pipeline.common.errors import InputError
from pipeline.common.settings import flatten_settings
from pipeline.data.build_state import BuildPlan
from pipeline.data.storage import Storage

IGNORED_SETTINGS = {"root", "scan_cache_dir"}  # of a corpus, which no dataset depends on
LOCATION_SETTINGS = {*IGNORED_SETTINGS, "audio", "metadata", "soundfont"}  # where a corpus is, not what it contains
# Settings besides data, codec and embedder.
SAMPLE_SETTINGS = ("samples_per_shard", "max_seconds", "bad_amplitude", "truncated")
# Older names that plan.json keeps, so that existing datasets stay valid.
RECORDED_NAMES = {"max_seconds": "longest_seconds", "min_seconds": "shortest_seconds"}


def validate_settings(cfg: Mapping[str, Any]) -> None:
    """Raises InputError for a value that is out of range."""
    amplitude.check_policy(cfg["bad_amplitude"])
    if cfg["truncated"] not in ("skip", "keep"):
        raise InputError(f"truncated={cfg['truncated']}: expected skip or keep")
    for name in ("samples_per_shard", "max_seconds", "decode_timeout", "batch"):
        value = cfg[name]
        if not (value == "auto" and name == "batch") and (isinstance(value, str) or not value > 0):
            raise InputError(f"{name}={value}: expected a number above 0")


def requested_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a dataset's contents depend on, as the user wrote them, by their recorded names."""
    data = {name: value for name, value in cfg["data"].items() if name not in IGNORED_SETTINGS}
    return {
        "data": _recorded(data),
        "codec": cfg["codec"],
        "embedder": cfg["embedder"],
        **_recorded({name: cfg[name] for name in SAMPLE_SETTINGS}),
    }


def settings_without_models(requested: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `requested_settings` that shape the samples and need no model, and the name of the resampler."""
    data = {name: value for name, value in requested["data"].items() if name not in LOCATION_SETTINGS}
    data["resampler"] = RESAMPLER
    return {"data": data, **{name: requested[name] for name in _recorded(dict.fromkeys(SAMPLE_SETTINGS))}}


def changed_settings(plan: BuildPlan, settings: Mapping[str, Any]) -> list[str]:
    """The dotted names of the settings that differ from those of a plan. settings: all of them, or some."""
    before, now = flatten_settings({name: plan.resolved.get(name, {}) for name in settings}), flatten_settings(settings)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def check_settings_unchanged(
    store: Storage, plan: BuildPlan | None, settings: Mapping[str, Any], reembed: bool
) -> None:
    """Raises InputError if an existing dataset was built with other settings.

    settings: all of them, or those that are known yet. reembed: whether the embedder may change.
    """
    if plan is None:
        return
    changed, before, now = changed_settings(plan, settings), flatten_settings(plan.resolved), flatten_settings(settings)
    if reembed:
        changed = [name for name in changed if not name.startswith("embedder.")]
    if changed:
        differences = ", ".join(
            f"{_setting_name(name)}={_shorten(before.get(name))} (now {_shorten(now.get(name))})" for name in changed
        )
        embedder_only = all(name.startswith("embedder.") for name in changed)
        hint = "; reembed=true computes new prompts and keeps the codes" if embedder_only else ""
        raise InputError(f"{store.display_path()} was made with {differences}: give another out=, or remove it{hint}")


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {RECORDED_NAMES.get(name, name): value for name, value in settings.items()}


def _setting_name(recorded: str) -> str:
    """The name on the command line of a setting of a plan: `data.shortest_seconds` -> `data.min_seconds`."""
    group, dot, name = recorded.rpartition(".")
    names = {old: new for new, old in RECORDED_NAMES.items()}
    return f"{group}{dot}{names.get(name, name)}"


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
