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
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.settings import flatten_settings
from pipeline.models.conditions import PROMPT
from pipeline.models.lora import Adapter
from pipeline.models.model_config import ModelConfig, default_values
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import RunContext
from pipeline.training.finetune import Base
from pipeline.training.schedules import Schedule

COMPARED_SETTINGS = (
    "seed", "mixture_weights", "data.seconds", "data.shuffle_shards", "data.interleave", "data.max_padding",
    "conditions", "condition_dropout", "model.pretrained", "model.dropout", "model.prompt_dropout", "optim",
    "trainer.max_grad_norm", "trainer.ema", "trainer.label_smoothing",
)  # fmt: skip
CLIPS_PER_RANK = "clips a rank and step"  # a key of the record
_NOT_COMPARED = {"ranks", CLIPS_PER_RANK, "trainer.steps"}
# by older versions, which had one optimizer and one condition
_NOT_RECORDED = {"optim.name": "adamw", "conditions": [PROMPT], "condition_dropout": 0.1}
_NOT_ARCHITECTURE = ("frames", "dropout", "prompt_dropout", "conditions")  # of these, conditions are compared by name
_ADAPTER = {  # an adapter does not fit another base, or a model without one
    "finetune.lora.rank": "rank",
    "finetune.lora.train_embeddings": "train_embeddings",
    "the sha256 of finetune.from": "base_sha256",
}
_DIGEST_LENGTH = 12  # hex digits that are recorded


def training_settings(context: RunContext, digests: Mapping[str, str], base: Base | None = None) -> dict[str, Any]:
    """The settings that a checkpoint records, by name.

    Args:
        context: the run.
        digests: a digest of the contents of the shards, by the setting that names them.
        base: the model that is fine-tuned.
    """
    trainer, flat = context.settings.trainer, flatten_settings(context.settings.to_dict())
    record = {key: flat[key] for name in COMPARED_SETTINGS for key in flat if key == name or key.startswith(f"{name}.")}
    if base is not None:
        finetune = context.settings.finetune
        record |= {
            "finetune.from": f"weights {base.sha256[:_DIGEST_LENGTH]}",
            **flatten_settings({"finetune.lora": finetune.lora.to_dict()}),
        }
        record |= {"finetune.keep_weight": finetune.keep_weight} if finetune.keep else {}
    record |= {name: f"contents {digest[:_DIGEST_LENGTH]}" for name, digest in digests.items()}
    record |= {"ranks": context.world.world_size, CLIPS_PER_RANK: trainer.clips_per_rank}
    return {**record, "trainer.steps": trainer.steps}


def check_resume(
    checkpoint: Checkpoint, context: RunContext, model: ModelConfig, now: Mapping[str, Any], base: Base | None = None
) -> list[str]:
    """Check that a checkpoint can be resumed.

    Args:
        checkpoint: the checkpoint.
        context: the run of now.
        model: the model of now.
        now: what `training_settings` returns for now.
        base: the model that is fine-tuned.

    Returns:
        A line to log for each difference that is accepted.

    Raises:
        InputError: the checkpoint is of another model, optimizer layout or precision; nothing is left to train; or
            settings have changed and `resume=` does not name the checkpoint.
    """
    check_model(checkpoint, model, base.adapter(model) if base else None)
    _check_engine(checkpoint, context)
    _check_steps(checkpoint, context)
    return _check_settings(checkpoint, context, now)


def check_model(checkpoint: Checkpoint, config: ModelConfig, adapter: Adapter | None = None) -> None:
    """Raises InputError, naming the settings that differ, unless the checkpoint has this architecture and adapter."""
    new = json.loads(json.dumps(asdict(config)))
    old = {**default_values(), **checkpoint.metadata["model"]}  # older versions had fewer fields
    names = [name for name in new if name not in _NOT_ARCHITECTURE]
    changes = [f"{name} was {old.get(name)!r}, is now {new[name]!r}" for name in names if old.get(name) != new[name]]
    changes += _changed_conditions(old["conditions"], new["conditions"])
    before, now = (each or {} for each in (checkpoint.metadata.get("adapter"), adapter and adapter.model_dump()))
    for setting, name in _ADAPTER.items():
        if before.get(name) != now.get(name):
            changes.append(f"{setting} was {before.get(name)!r:.20}, is now {now.get(name)!r:.20}")
    if changes:
        raise InputError(
            f"{checkpoint.path} is of another model ({'; '.join(changes)}): use its settings, or another run=DIR"
        )


def _changed_conditions(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """What differs between the conditions of two models, by name; their dropout is a recorded setting."""
    before, now = ({each["name"]: {**each, "dropout": 0.0} for each in conditions} for conditions in (old, new))
    if [*before] != [*now]:
        return [f"conditions was [{', '.join(before)}], is now [{', '.join(now)}]"]
    return [f"the condition {name} has another kind or other values" for name in now if before[name] != now[name]]


def _check_engine(checkpoint: Checkpoint, context: RunContext) -> None:
    """Raises InputError unless the engine of this run can read the optimizer of the checkpoint."""
    stage, bf16 = context.settings.deepspeed.zero_optimization.stage, context.bf16
    old_stage, old_bf16 = checkpoint.metadata["stage"], checkpoint.metadata.get("bf16", bf16)
    if (_file_layout(old_stage), old_bf16) == (_file_layout(stage), bf16):
        return
    if not context.world.has_deepspeed:
        raise InputError(
            f"{checkpoint.path} has the optimizer state of ZeRO stage {old_stage} in {'bf16' if old_bf16 else 'fp32'}: "
            "without DeepSpeed only checkpoints of stage 0 in fp32 can be resumed; install it, or use another run=DIR"
        )
    choices = " or ".join(f"zero{n}" for n in range(4) if _file_layout(n) == _file_layout(old_stage))
    precision, old_precision = ("bf16" if value else "fp32" for value in (bf16, old_bf16))
    raise InputError(
        f"{checkpoint.path} has the optimizer state of ZeRO stage {old_stage} in {old_precision}, which ZeRO stage "
        f"{stage} in {precision} cannot read: set deepspeed={choices} and trainer.precision={old_precision}, or use "
        "another run=DIR"
    )


def _file_layout(stage: int) -> int:
    """Which of DeepSpeed's file layouts a ZeRO stage has: that of stages 1 and 2 is the same."""
    return min(stage, 1) + (stage > 2)


def _check_steps(checkpoint: Checkpoint, context: RunContext) -> None:
    """Raises InputError if the checkpoint is beyond the last step, or leaves another run no step."""
    path, step, steps = checkpoint.path, checkpoint.step, context.settings.trainer.steps
    run = path.resolve().parents[1]
    if step >= steps and run != context.run_dir.resolve():
        raise InputError(
            f"trainer.steps={steps}: {path} is already at step {step}; set more steps, or export it with "
            f"`python -m pipeline.export run={path.parents[1]} checkpoint={path}`"
        )
    if step > steps:
        raise InputError(
            f"trainer.steps={steps}: {path} is already at step {step}; set {step} or more, or another run=DIR"
        )


def _check_settings(checkpoint: Checkpoint, context: RunContext, now: Mapping[str, Any]) -> list[str]:
    """A line for each accepted difference. Raises InputError if settings have changed and `resume` is `auto`."""
    old, run = checkpoint.metadata.get("settings"), context.run_dir
    if not isinstance(old, dict):
        return [f"{checkpoint.path} records no settings, so none are compared"]
    changes = changed_settings(old, now)
    if changes and context.settings.resume == "auto":
        raise InputError(
            f"run={run} was trained with other settings ({'; '.join(changes)}): use those, or another run=DIR, or "
            f"resume={run} to resume with the new ones"
        )
    notes = [f"resumed with a changed setting: {change}" for change in changes]
    before, after = _clips_per_step(old), _clips_per_step(now)
    if before != after:
        notes.append(f"{after} clips per step on {now['ranks']} ranks, {before} before")
    steps = old.get("trainer.steps", 1), context.settings.trainer.steps
    return notes + describe_stretch(context.settings.optim.schedule, checkpoint.step, *steps)


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The compared settings that differ between two records, as `name was X, is now Y`."""
    old = {**{name: value for name, value in _NOT_RECORDED.items() if name in new}, **old}
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
    return int(record.get(CLIPS_PER_RANK, 0) * record.get("ranks", 1))


def describe_stretch(schedule: Schedule, step: int, old_steps: int, new_steps: int) -> list[str]:
    """A line if another total number of steps changes the learning rate at the step that is resumed."""
    old_lr, new_lr = (schedule.multiplier(step, steps) for steps in (old_steps, new_steps))
    if old_lr == new_lr:
        return []
    return [
        f"trainer.steps={new_steps}, {old_steps} before: the {schedule.name} schedule is stretched, and at step {step} "
        f"the learning rate is {new_lr:.3g} of its peak instead of {old_lr:.3g}"
    ]
