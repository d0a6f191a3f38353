"""The preflight: estimates of a run, printed before anything is built, and a refusal of a run that does not fit.

    python -m pipeline.train +exp=delay_gpt2 trainer.preflight=only      print the table and exit

`trainer.preflight` is true, false (no table, no refusal) or only. Memory is estimated by the formulas of
`pipeline.training.memory_model`. *total* adds up all that a rank may allocate. A run is refused only if what must be
allocated at the same time (weights, optimizer, and either gradients or activations) exceeds the device's memory.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from pipeline.common.errors import InputError
from pipeline.models.codec_gpt import ModelConfig
from pipeline.training import checkpoint
from pipeline.training.data import TrainData
from pipeline.training.distributed import World
from pipeline.training.engine import use_bf16
from pipeline.training.preflight_table import build_table, format_bytes
from pipeline.training.run_estimate import MemoryEstimate, RunEstimate, probe_hardware

_DEEPSPEED_MARGIN = 1.5  # included in DeepSpeed's estimate of host memory


def run_preflight(
    cfg: DictConfig, model: ModelConfig, data: TrainData, world: World, resume_from: Path | None = None
) -> bool:
    """Print the table on the first rank, and check that the run fits. A barrier.

    Returns:
        Whether the table is all that the settings request.

    Raises:
        InputError: the run does not fit; on all ranks.
    """
    request = cfg.trainer.preflight
    if request not in (True, False, "only"):
        raise InputError(f"trainer.preflight={request}: expected true, false or only")
    if request is False:
        return False
    bf16 = use_bf16(cfg, world.device.type)
    resumed_step = checkpoint.read_metadata(resume_from)["step"] if resume_from else 0
    estimate = RunEstimate(cfg, model, data, probe_hardware(world, Path(cfg.run)), bf16, resumed_step)
    blockers = find_blockers(estimate)
    if world.is_main:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
        console.print(build_table(estimate))
        for warning in find_warnings(estimate):
            console.print(f"note: {warning}", highlight=False, soft_wrap=True)
    if blockers:
        raise InputError("; ".join(blockers))
    return bool(request == "only")


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
            f"at {estimate.cfg.run}, but {format_bytes(hardware.disk)} are free: lower "
            f"trainer.keep={estimate.cfg.trainer.keep}, or give run= on another disk"
        )
    return blockers


def _format_sum(memory: MemoryEstimate) -> str:
    """The terms of `memory.least`."""
    states = memory.states
    terms = {"weights": states.weights, "optimizer": states.optimizer, "buffers": states.buffers}
    if states.gradients > memory.activations + memory.temporary:
        terms["gradients"] = states.gradients
    else:
        terms |= {"activations": memory.activations, "logits": memory.temporary}
    return " + ".join(f"{name} {format_bytes(count)}" for name, count in terms.items() if count)


def _suggest_settings(estimate: RunEstimate) -> str:
    """The settings that would fit; those that change the least come first."""
    available, batch, sharding = estimate.hardware.memory, estimate.cfg.trainer.micro_batch, estimate.sharding
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
    warnings, memory, t = [], estimate.memory(estimate.sharding), estimate.cfg.trainer
    epoch, clips = estimate.data.sampler.epoch_size, estimate.clips_per_step
    if epoch < clips:
        warnings.append(f"an epoch has {epoch:,} clips but a step takes {clips:,}: clips repeat within a step")
    if not estimate.data.num_valid_clips:
        split = estimate.cfg.data.valid
        warnings.append(f"there are no clips in data.valid={split}: no validation loss, no best checkpoint")
    if estimate.resumed_step >= t.steps:
        warnings.append(f"the run is at step {estimate.resumed_step} of {t.steps}: there is nothing left to train")
    if memory.least <= estimate.hardware.memory < memory.total:
        free = format_bytes(estimate.hardware.memory)
        warnings.append(f"memory is tight: {format_bytes(memory.total)} in total, {free} free")
    if estimate.bf16 and estimate.sharding.stage == 0:
        warnings.append("in bf16, stage 0 of DeepSpeed 0.19 computes no gradients in its first step: zero1 does")
    return warnings
