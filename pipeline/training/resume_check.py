"""Whether a checkpoint may be resumed with the settings of now.

Each checkpoint records the settings that change how a training proceeds. On resume they are compared: the seed, the
contents of the shards, the order of clips, clips per step, the optimizer with its schedule, and what else changes a
weight. Not compared are: intervals of logging, validation and saving; where files are; the number of ranks, as long as
clips per step or clips per rank and step stay the same; and the number of steps, which may grow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError
from pipeline.common.settings import flatten_settings
from pipeline.models.codec_gpt import ModelConfig
from pipeline.training import schedules
from pipeline.training.checkpoint import read_metadata
from pipeline.training.distributed import World
from pipeline.training.engine import use_bf16

COMPARED_SETTINGS = (
    "seed", "mixture_weights", "data.seconds", "data.shuffle_shards", "data.interleave", "data.max_padding",
    "model.pretrained", "model.dropout", "model.prompt_dropout", "optim", "trainer.max_grad_norm", "trainer.ema",
    "trainer.label_smoothing",
)  # fmt: skip
CLIPS_PER_RANK = "clips a rank and step"  # a key of the record
_NOT_COMPARED = {"ranks", CLIPS_PER_RANK, "trainer.steps"}
_NOT_ARCHITECTURE = ("frames", "dropout", "prompt_dropout")  # longer clips may follow; dropout is a recorded setting
_DIGEST_LENGTH = 12  # hex digits that are recorded


def training_settings(cfg: DictConfig, digests: Mapping[str, str], ranks: int) -> dict[str, Any]:
    """The settings that a checkpoint records, by name.

    Args:
        cfg: the settings.
        digests: a digest of the contents of the shards, by the setting that names them.
        ranks: number of ranks.
    """
    record: dict[str, Any] = {}
    for name in COMPARED_SETTINGS:
        value = OmegaConf.select(cfg, name)
        record |= flatten_settings(
            {name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value}
        )
    record |= {name: f"contents {digest[:_DIGEST_LENGTH]}" for name, digest in digests.items()}
    record |= {"ranks": ranks, CLIPS_PER_RANK: cfg.trainer.micro_batch * cfg.trainer.gradient_accumulation_steps}
    return json.loads(json.dumps({**record, "trainer.steps": cfg.trainer.steps}))


def check_resume(
    checkpoint: Path | None, cfg: DictConfig, model: ModelConfig, world: World, settings: Mapping[str, Any]
) -> list[str]:
    """Check that a checkpoint can be resumed.

    Args:
        checkpoint: a complete checkpoint, or None to start from scratch.
        cfg: the settings of now.
        model: the model of now.
        world: gives the device.
        settings: what `training_settings` returns for now.

    Returns:
        A line to log for each difference that is accepted.

    Raises:
        InputError: the checkpoint is of another model, optimizer layout or precision; nothing is left to train; or
            settings have changed and `resume=` does not name the checkpoint.
    """
    if checkpoint is None:
        return []
    check_model(checkpoint, model)
    check_engine(checkpoint, cfg.deepspeed.zero_optimization.stage, use_bf16(cfg, world.device.type))
    check_steps(checkpoint, Path(cfg.run), cfg.trainer.steps)
    return check_settings(checkpoint, settings, cfg.resume, Path(cfg.run))


def check_model(checkpoint: Path, config: ModelConfig) -> None:
    """Raises InputError, naming the settings that differ, unless the checkpoint has this architecture."""
    old, new = read_metadata(checkpoint)["model"], json.loads(json.dumps(asdict(config)))
    names = [name for name in new if name not in _NOT_ARCHITECTURE]
    changes = [f"{name} was {old.get(name)!r}, is now {new[name]!r}" for name in names if old.get(name) != new[name]]
    if changes:
        raise InputError(
            f"{checkpoint} is of another model ({'; '.join(changes)}): use its settings, or another run=DIR"
        )


def check_engine(checkpoint: Path, stage: int, bf16: bool) -> None:
    """Raises InputError unless an engine of this ZeRO stage and precision can read the optimizer of the checkpoint."""
    state = read_metadata(checkpoint)
    old_stage, old_bf16 = state["stage"], state.get("bf16", bf16)
    if (_file_layout(old_stage), old_bf16) == (_file_layout(stage), bf16):
        return
    choices = " or ".join(f"zero{n}" for n in range(4) if _file_layout(n) == _file_layout(old_stage))
    raise InputError(
        f"{checkpoint} has the optimizer state of ZeRO stage {old_stage} in {_precision(old_bf16)}, which ZeRO stage "
        f"{stage} in {_precision(bf16)} cannot read: set deepspeed={choices} and "
        f"trainer.precision={_precision(old_bf16)}, or use another run=DIR"
    )


def _file_layout(stage: int) -> int:
    """Which of DeepSpeed's file layouts a ZeRO stage has: that of stages 1 and 2 is the same."""
    return min(stage, 1) + (stage > 2)


def _precision(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def check_steps(checkpoint: Path, run: Path, steps: int) -> None:
    """Raises InputError if the checkpoint of another run leaves this run no step, and so no checkpoint."""
    step = read_metadata(checkpoint)["step"]
    if step >= steps and checkpoint.resolve().parents[1] != run.resolve():
        raise InputError(
            f"trainer.steps={steps}: {checkpoint} is already at step {step}; set more steps, or export it with "
            f"`python -m pipeline.export run={checkpoint.parents[1]} checkpoint={checkpoint}`"
        )


def check_settings(checkpoint: Path, now: Mapping[str, Any], resume: str, run: Path) -> list[str]:
    """Compare the settings that a checkpoint records with those of now.

    Returns:
        A line to log for each difference that is accepted.

    Raises:
        InputError: settings have changed and `resume` is `auto`, or the checkpoint is beyond `trainer.steps`.
    """
    state = read_metadata(checkpoint)
    old, step, steps = state.get("settings"), state["step"], now["trainer.steps"]
    if steps < step:
        raise InputError(
            f"trainer.steps={steps}: {checkpoint} is already at step {step}; set {step} or more, or another run=DIR"
        )
    if not isinstance(old, dict):
        return [f"{checkpoint} records no settings, so none are compared"]
    changes = changed_settings(old, now)
    if changes and resume == "auto":
        raise InputError(
            f"run={run} was trained with other settings ({'; '.join(changes)}): use those, or another run=DIR, or "
            f"resume={run} to resume with the new ones"
        )
    return [f"resumed with a changed setting: {change}" for change in changes] + _consequences(old, now, step)


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The compared settings that differ between two records, as `name was X, is now Y`."""
    changes = [
        f"{name} was {old.get(name)!r}, is now {new.get(name)!r}"
        for name in dict.fromkeys([*old, *new])
        if name not in _NOT_COMPARED and old.get(name) != new.get(name)
    ]
    before, after = _clips_per_step(old), _clips_per_step(new)
    if CLIPS_PER_RANK in old and before != after and old[CLIPS_PER_RANK] != new[CLIPS_PER_RANK]:
        terms = "micro_batch x gradient_accumulation_steps x ranks"
        changes.append(f"clips per step ({terms}) was {before}, is now {after}")
    return changes


def _clips_per_step(record: Mapping[str, Any]) -> int:
    return record.get(CLIPS_PER_RANK, 0) * record.get("ranks", 1)


def _consequences(old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> list[str]:
    """A line for each effect of a change that is accepted silently."""
    notes = []
    before, after = _clips_per_step(old), _clips_per_step(new)
    if before != after:
        notes.append(f"{after} clips per step on {new['ranks']} ranks, {before} before")
    schedule = {name.rpartition(".")[2]: value for name, value in new.items() if name.startswith("optim.schedule.")}
    old_steps, new_steps = old.get("trainer.steps", 1), new["trainer.steps"]
    old_lr, new_lr = (schedules.lr_multiplier(step, steps, schedule) for steps in (old_steps, new_steps))
    if old_lr != new_lr:
        notes.append(
            f"trainer.steps={new_steps}, {old_steps} before: the {schedule['name']} schedule is stretched, and at step "
            f"{step} the learning rate is {new_lr:.3g} of its peak instead of {old_lr:.3g}"
        )
    return notes
