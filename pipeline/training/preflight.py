"""The preflight: estimates of a run, printed before anything is built, and a refusal of a run that does not fit.

    python -m pipeline.train +exp=delay_gpt2 trainer.preflight=only      print the tables, time a few steps, and exit

`trainer.preflight` is true, false (no table, no refusal) or only. Memory is estimated by the formulas of
`pipeline.training.memory`. *total* adds up all that a rank may allocate. A run is refused only if what must be
allocated at the same time (weights, optimizer, and either gradients or activations) exceeds the device's memory.
"""

from __future__ import annotations

import statistics

from rich.console import Console

from pipeline.common.console import format_duration
from pipeline.common.errors import InputError, first_line
from pipeline.data.training_length import round_down, suggest_steps
from pipeline.models.model_config import ModelConfig
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import RunContext
from pipeline.training.data import RunBatches, TrainData
from pipeline.training.engine import build_engine, build_model
from pipeline.training.finetune import Base
from pipeline.training.memory import MemoryEstimate
from pipeline.training.preflight_table import build_memory_table, build_table, format_bytes
from pipeline.training.run_estimate import RunEstimate, probe_hardware
from pipeline.training.trainer import Trainer

_DEEPSPEED_MARGIN = 1.5  # included in DeepSpeed's estimate of host memory
_WIDTH = 80
_MANY_EPOCHS = 100  # after which a model mostly repeats its clips
_WARMUP_SHARE = 20  # of the steps is suggested: 1/20
_VALIDATIONS = 10  # in a training of the suggested intervals
_TIMED_STEPS = 4  # the first, which may compile the model, does not count


def run_preflight(
    context: RunContext, model: ModelConfig, data: TrainData, resume_from: Checkpoint | None = None,
    base: Base | None = None,
) -> bool:  # fmt: skip
    """Print the tables on the first rank, and check that the run fits. A barrier.

    Returns:
        Whether the tables are all that the settings request.

    Raises:
        InputError: the run does not fit; on all ranks.
    """
    request = context.settings.trainer.preflight
    if request is False:
        return False
    hardware, done = probe_hardware(context.world, context.run_dir), resume_from.step if resume_from else 0
    estimate = RunEstimate(
        context.settings, model, data, hardware, context.bf16, done, base.adapter(model) if base else None
    )
    console = Console(quiet=not context.world.is_main, soft_wrap=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(build_table(estimate))
    console.print(build_memory_table(estimate))
    for warning in find_warnings(estimate):
        console.print(f"note: {warning}", highlight=False)
    if blockers := find_blockers(estimate):
        raise InputError("; ".join(blockers))
    if request == "only":
        console.print(measure_time(context, model, data, done, base), highlight=False)
    else:
        console.print("time: see eta below; trainer.preflight=only times a few steps instead", highlight=False)
    return request == "only"


def measure_time(context: RunContext, model: ModelConfig, data: TrainData, done: int, base: Base | None) -> str:
    """A line with the time that the steps after `done` take, by timing a few of them. Nothing is written. A barrier."""
    left = context.settings.trainer.steps - done
    try:
        engine = build_engine(context, build_model(context.settings, model, data, False, base))
        times = Trainer(context, engine, RunBatches(data, context), {}).time_steps(_TIMED_STEPS)
    except (RuntimeError, OSError, FloatingPointError) as error:  # such as too little memory, or a damaged clip
        return f"time: not measured ({first_line(error)})"
    seconds = statistics.median(times[1:])
    total = format_duration(seconds * left)
    return f"time: a step takes {seconds:.3g} s here, so {left:,} steps take {total}, without validation and saving"


def find_blockers(estimate: RunEstimate) -> list[str]:
    """A line for each reason why the run does not fit, with the arithmetic and a solution; empty if it fits."""
    blockers, hardware, sharding = [], estimate.hardware, estimate.sharding
    memory = estimate.memory(sharding)
    if memory.least > hardware.memory:
        blockers.append(
            f"a rank needs at least {format_bytes(memory.least)} ({_format_sum(memory)}) but has "
            f"{format_bytes(hardware.memory)} of {hardware.device}: {_suggest_settings(estimate)}, or "
            "trainer.preflight=false to try it anyway"
        )
    host = estimate.host_bytes(sharding) / _DEEPSPEED_MARGIN
    if hardware.cuda and host > hardware.host:
        blockers.append(
            f"{hardware.ranks_per_node} ranks per node need at least {format_bytes(host)} of host memory, but "
            f"{format_bytes(hardware.host)} are free: use fewer ranks per node, or no offload"
        )
    if estimate.disk_bytes > hardware.disk:
        size, count = estimate.checkpoints
        blockers.append(
            f"{count} checkpoints of {format_bytes(size)} and the export need {format_bytes(estimate.disk_bytes)} more "
            f"at {estimate.settings.run}, but {format_bytes(hardware.disk)} are free: lower "
            f"trainer.keep={estimate.settings.trainer.keep}, or give run= on another disk"
        )
    return blockers


def _format_sum(memory: MemoryEstimate) -> str:
    """The terms of `memory.least`."""
    terms = {"weights": memory.weights, "optimizer": memory.optimizer, "buffers": memory.buffers}
    if memory.gradients > memory.activations + memory.temporary:
        terms["gradients"] = memory.gradients
    else:
        terms |= {"activations": memory.activations, "logits": memory.temporary}
    return " + ".join(f"{name} {format_bytes(count)}" for name, count in terms.items() if count)


def _suggest_settings(estimate: RunEstimate) -> str:
    """The settings that would fit; those that change the least come first."""
    available, batch, sharding = estimate.hardware.memory, estimate.settings.trainer.micro_batch, estimate.sharding
    fitting = [n for n in range(1, batch) if estimate.memory(sharding, batch=n).least <= available]
    suggestions = [f"trainer.micro_batch={max(fitting)}"] if fitting else []
    is_checkpointed = estimate.activation_mode(sharding) == "checkpointed"
    if not is_checkpointed and estimate.memory(sharding, "checkpointed").least <= available:
        suggestions.append("trainer.activation_checkpointing=true")
    for name, choice in estimate.sharding_choices().items():
        if estimate.memory(choice).least <= available:
            suggestions.append(f"deepspeed={name}")
            break
    return ", ".join(suggestions) or "no setting fits: use more ranks, shorter clips (data.seconds) or a smaller model"


def find_warnings(estimate: RunEstimate) -> list[str]:
    """A line for each thing that is allowed but probably not intended."""
    warnings, memory, t = [], estimate.memory(estimate.sharding), estimate.settings.trainer
    epoch, clips = estimate.data.sampler.epoch_size, estimate.clips_per_step
    if epoch < clips:
        warnings.append(f"an epoch has {epoch:,} clips but a step takes {clips:,}: clips repeat within a step")
    if not estimate.data.num_valid_clips:
        split = estimate.settings.data.valid
        warnings.append(f"there are no clips in data.valid={split}: no validation loss, no best checkpoint")
    if estimate.resumed_step >= t.steps:
        warnings.append(f"the run is at step {estimate.resumed_step} of {t.steps}: there is nothing left to train")
    if memory.least <= estimate.hardware.memory < memory.total:
        free = format_bytes(estimate.hardware.memory)
        warnings.append(f"memory is tight: {format_bytes(memory.total)} in total, {free} free")
    if estimate.bf16 and estimate.sharding.stage == 0:
        warnings.append("in bf16, stage 0 of DeepSpeed 0.19 computes no gradients in its first step: zero1 does")
    return warnings + suggest_length(estimate)


def suggest_length(estimate: RunEstimate) -> list[str]:
    """A line with steps, warm-up and validation interval that fit the dataset, if those of the settings do not."""
    t, schedule, data = estimate.settings.trainer, estimate.settings.optim.schedule, estimate.data
    has_many_epochs = estimate.epochs > _MANY_EPOCHS and t.compute_budget_pflop is None
    steps = suggest_steps(data.sampler.epoch_size, estimate.clips_per_step) if has_many_epochs else t.steps
    values = {"trainer.steps": steps} if steps < t.steps else {}
    if schedule.warmup > steps // 4:
        values["optim.schedule.warmup"] = round_down(max(1, steps // _WARMUP_SHARE))
    interval = round_down(max(1, steps // _VALIDATIONS))
    values |= {f"trainer.{n}": interval for n in ("val_every", "save_every") if getattr(t, n) > steps // 2}
    if not values:
        return []
    reason = f"{t.steps:,} steps are few for the intervals and the warm-up"
    if "trainer.steps" in values:
        seconds = sum(split.manifest.hours(split.split) for split in data.train) * 3600
        sound = f"{estimate.epochs:,.0f} epochs of {format_duration(seconds)} of sound"
        reason = f"{sound}: the model will repeat it rather than learn from it"
    suggestion = " ".join(f"{name}={value}" for name, value in values.items())
    return [f"{reason}; this would fit: {suggestion}"]
