"""The settings that change how a training goes: recorded in each checkpoint, and compared when it is resumed.

What is compared: seed, the contents of the shards, the order of clips, clips a step, the optimizer and its schedule,
and what else changes a weight. What is not: how often is logged, validated and saved; where files are; the number of
ranks, as long as a step or a rank's part of it has as many clips as before; and the number of steps, which may grow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError
from pipeline.training import schedules
from pipeline.training.checkpoint import read_metadata

NAMES = (
    "seed", "mixture_weights", "data.seconds", "data.shuffle_shards", "data.interleave", "data.max_padding",
    "model.pretrained", "model.dropout", "model.prompt_dropout", "optim", "trainer.max_grad_norm", "trainer.ema",
    "trainer.label_smoothing",
)  # fmt: skip
A_RANK = "clips a rank and step"
_SHOWN = 12  # digits of a digest


def training_settings(cfg: DictConfig, digests: Mapping[str, str], ranks: int) -> dict[str, Any]:
    """The record that goes into a checkpoint, by setting.

    Args:
        cfg: the settings of training.
        digests: of the contents of the shards, by the setting that names them.
        ranks: how many processes train.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        value = OmegaConf.select(cfg, name)
        found |= _flat(name, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
    found |= {name: f"contents {digest[:_SHOWN]}" for name, digest in digests.items()}
    found |= {"ranks": ranks, A_RANK: cfg.trainer.micro_batch * cfg.trainer.gradient_accumulation_steps}
    return json.loads(json.dumps({**found, "trainer.steps": cfg.trainer.steps}))


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, each in value.items() for key, leaf in _flat(f"{name}.{part}", each).items()}


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, as `name=value then, value now`, but for what may differ."""
    free = {"ranks", A_RANK, "trainer.steps"}
    names = dict.fromkeys([*then, *now])
    found = [
        f"{name}={then.get(name)!r} then, {now.get(name)!r} now"
        for name in names
        if name not in free and then.get(name) != now.get(name)
    ]
    old, new = (record.get(A_RANK, 0) * record.get("ranks", 1) for record in (then, now))
    if A_RANK in then and old != new and then[A_RANK] != now[A_RANK]:
        found.append(f"clips a step (micro_batch x gradient_accumulation_steps x ranks)={old} then, {new} now")
    return found


def check_settings(checkpoint: Path, now: Mapping[str, Any], resume: str, run: Path) -> list[str]:
    """Compare the settings of a checkpoint with those of now.

    Raises InputError, naming what differs, unless `resume` names the checkpoint or its run; and for fewer steps than it
    has taken.

    Returns:
        What is accepted and should be logged, a line each.
    """
    state = read_metadata(checkpoint)
    then, step, steps = state.get("settings"), state["step"], now["trainer.steps"]
    if steps < step:
        raise InputError(
            f"trainer.steps={steps}: {checkpoint} has taken {step} already; give {step} or more, or another run=DIR"
        )
    if not isinstance(then, dict):
        return [f"{checkpoint} records no settings of its training, so none are compared"]
    changed = changed_settings(then, now)
    if changed and resume == "auto":
        raise InputError(
            f"run={run} was trained with other settings ({'; '.join(changed)}): give those, or another run=DIR, or "
            f"resume={run} to go on with the new ones"
        )
    return [f"resumed with another setting: {change}" for change in changed] + _consequences(then, now, step)


def _consequences(then: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """What follows from changes that are accepted without a question."""
    found = []
    batches = [record.get(A_RANK, 0) * record.get("ranks", 1) for record in (then, now)]
    if batches[0] != batches[1]:
        found.append(f"{batches[1]} clips a step on {now['ranks']} ranks, {batches[0]} before")
    schedule = {name.rpartition(".")[2]: value for name, value in now.items() if name.startswith("optim.schedule.")}
    steps = then.get("trainer.steps", 1), now["trainer.steps"]
    before, after = (schedules.lr_multiplier(step, count, schedule) for count in steps)
    if before != after:
        found.append(
            f"trainer.steps={steps[1]}, {steps[0]} before: the {schedule['name']} schedule is stretched, and at step "
            f"{step} the learning rate is {after:.3g} of its peak instead of {before:.3g}"
        )
    return found
