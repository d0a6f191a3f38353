"""What a run will take, told before anything is built: one table, and a refusal where it cannot be had.

    python -m pipeline.train +exp=delay_gpt2 trainer.preflight=only      the table, and no more

trainer.preflight is true, false (neither table nor refusal) or only. Memory is estimated by the formulas of
`pipeline.models.model_stats`: *total* adds up all that a rank may hold; it is refused only where what must be there at
one time (weights, optimizer, and either gradients or activations) is more than the device has.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardedDataset
from pipeline.data.sampler import Sampler
from pipeline.models.codec_gpt import ModelConfig
from pipeline.training import checkpoint
from pipeline.training import setup as training
from pipeline.training.distributed import World
from pipeline.training.preflight_table import size, table
from pipeline.training.run_estimate import RunEstimate, probe_hardware


def run_preflight(
    cfg: DictConfig,
    model: ModelConfig,
    splits: list[tuple[ShardedDataset, ShardedDataset]],
    order: Sampler,
    world: World,
    found: Path | None = None,
) -> bool:
    """Print the table (first rank), and say whether it is all that was asked for. A meeting point of all ranks.

    Raises InputError, on all ranks alike, for what cannot be.
    """
    asked = cfg.trainer.preflight
    if asked not in (True, False, "only"):
        raise InputError(f"trainer.preflight={asked}: give true, false or only")
    if asked is False:
        return False
    bf16 = training.use_bf16(cfg, world.device.type)
    done = checkpoint.read_metadata(found)["step"] if found else 0
    plan = RunEstimate(cfg, model, splits, order, probe_hardware(world, Path(cfg.run)), bf16, done)
    wrong = find_blockers(plan)
    if world.is_main:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
        console.print(table(plan))
        for note in find_warnings(plan):
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if wrong:
        raise InputError("; ".join(wrong))
    return bool(asked == "only")


def find_blockers(plan: RunEstimate) -> list[str]:
    """Why the run cannot be, each with its arithmetic and a way out; empty where it can."""
    found, machine, setup = [], plan.machine, plan.setup
    batch = plan.t.micro_batch
    need = plan.need(setup, plan.mode(setup), batch)
    if need.least > machine.memory:
        states = need.states
        parts = {"weights": states.weights, "optimizer": states.optimizer, "buffers": states.buffers}
        if states.gradients > need.activations + need.passing:
            parts["gradients"] = states.gradients
        else:
            parts |= {"activations": need.activations, "logits": need.passing}
        sum_ = " + ".join(f"{name} {size(taken)}" for name, taken in parts.items() if taken)
        found.append(
            f"a rank needs at least {size(need.least)} ({sum_}) and has {size(machine.memory)} of {machine.device}: "
            f"{_suggest_settings(plan)}, or trainer.preflight=false to try all the same"
        )
    host = plan.host(setup) / 1.5  # without the margin of DeepSpeed's estimate
    if machine.cuda and host > machine.host:
        found.append(
            f"{machine.ranks_here} ranks of a machine need at least {size(host)} of its own memory, and it has "
            f"{size(machine.host)}: fewer ranks a machine, or no offload"
        )
    if plan.disk > machine.disk:
        each, count = plan.checkpoints
        found.append(
            f"{count} checkpoints of {size(each)} and the export need {size(plan.disk)} more at {plan.cfg.run}, and "
            f"{size(machine.disk)} are free: lower trainer.keep={plan.t.keep}, or give run= on another disk"
        )
    return found


def _suggest_settings(plan: RunEstimate) -> str:
    """The settings that would fit, the mildest first."""
    memory, batch = plan.machine.memory, plan.t.micro_batch
    fits = [n for n in range(1, batch) if plan.need(plan.setup, plan.mode(plan.setup), n).least <= memory]
    ways = [f"trainer.micro_batch={max(fits)}"] if fits else []
    if plan.mode(plan.setup) != "checkpointed" and plan.need(plan.setup, "checkpointed", batch).least <= memory:
        ways.append("trainer.activation_checkpointing=true")
    for name, setup in plan.setups().items():
        if plan.need(setup, plan.mode(setup), batch).least <= memory:
            ways.append(f"deepspeed={name}")
            break
    return ", ".join(ways) or "no setting here fits: more ranks, shorter clips (data.seconds), or a smaller model"


def find_warnings(plan: RunEstimate) -> list[str]:
    """What is allowed, and worth knowing before it runs."""
    found, need = [], plan.need(plan.setup, plan.mode(plan.setup), plan.t.micro_batch)
    if plan.order.epoch_size < plan.clips:
        found.append(
            f"an epoch has {plan.order.epoch_size:,} clips and a step takes {plan.clips:,}: clips repeat within it"
        )
    if not sum(len(valid) for _, valid in plan.splits):
        found.append(f"there are no clips in data.valid={plan.cfg.data.valid}: no validation loss, no best checkpoint")
    if plan.done >= plan.t.steps:
        found.append(f"the run has reached step {plan.done} of {plan.t.steps}: there is nothing left to train")
    if need.least <= plan.machine.memory < need.total:
        found.append(f"memory is tight: {size(need.total)} in all, {size(plan.machine.memory)} free")
    if plan.bf16 and plan.setup.stage == 0:
        found.append("in bf16, DeepSpeed 0.19's stage 0 takes a first step without gradients: zero1 does not")
    return found
