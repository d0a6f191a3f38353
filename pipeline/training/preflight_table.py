"""A plan as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from pipeline.data.dataloader import ShardedDataset
from pipeline.models import model_stats
from pipeline.training.run_estimate import RunEstimate

UNITS = ((10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB"))


def table(plan: RunEstimate) -> Table:
    """All that is known before the run."""
    model, t, machine, order = plan.model, plan.t, plan.machine, plan.order
    rate = plan.splits[0][0].manifest.frame_rate
    parts = model_stats.parameter_counts(model)
    hours, valid = (sum(pair[i].manifest.hours(pair[i].split) for pair in plan.splits) for i in (0, 1))
    each, count = plan.checkpoints
    shown = Table(title=f"preflight: {plan.cfg.name}", title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    rows: dict[str, Any] = {
        "model": f"{sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {n:,}" for name, n in parts.items())
        + f"; {model.layers} layers, {model.width} wide",
        "sequence": f"{plan.frames} frames ({plan.frames / rate:.2f} s, the longest clip) of {model.codebooks} "
        f"codebooks are {plan.steps} steps under pattern {model.pattern}, of {model.positions} positions",
        "a step": f"{plan.clips:,} clips = {t.micro_batch} micro_batch x "
        f"{t.gradient_accumulation_steps} gradient_accumulation_steps x {machine.ranks} ranks",
        "an epoch": f"{order.epoch_size:,} clips, {order.epoch_size / plan.clips:,.1f} steps; {hours:,.3g} h of audio "
        f"to learn from, {valid:,.3g} h to validate on",
        "the run": f"{t.steps:,} steps are {t.steps * plan.clips / order.epoch_size:,.1f} epochs"
        + (f"; {plan.done:,} are done" if plan.done else ""),
        "cache": "\n".join(_fit(train) for train, _ in plan.splits),
        "memory": memory(plan),
        "device": f"{machine.device}: {size(machine.memory)} free; the machine: {size(machine.host)}",
        "disk": f"{size(plan.disk)} to come: {count} checkpoints of {size(each)} at most, and the export; "
        f"{size(machine.disk)} free at {plan.cfg.run}",
    }
    for name, told in rows.items():
        shown.add_row(name, told)
    return shown


def _fit(split: ShardedDataset) -> str:
    """That a cache fits: had it not, it would have been refused when it was opened."""
    manifest, codec, embedder = split.manifest, split.manifest.codec, split.manifest.embedder
    return (
        f"{manifest.path} fits: {codec['name']} at {manifest.frame_rate} Hz, {split.codebooks} of its "
        f"{manifest.codebooks} codebooks; prompts of {embedder['name']}, {manifest.prompt_dim} wide"
    )


def memory(plan: RunEstimate) -> Table:
    """Bytes a rank at every ZeRO stage, with this model, batch and precision."""
    batch = plan.t.micro_batch
    setups = plan.setups()
    needs = {name: plan.need(setup, plan.mode(setup), batch) for name, setup in setups.items()}
    power, unit = max((p, u) for p, u in UNITS if p == 10 or max(n.total for n in needs.values()) >= 2**p)
    spared = plan.need(plan.setup, "checkpointed", batch).activations
    shown = Table(
        title=f"estimated for a rank of {plan.machine.ranks} in {'bf16' if plan.bf16 else 'fp32'}, in {unit}",
        caption=f"activations are kept {plan.mode(plan.setup)}; with trainer.activation_checkpointing=true "
        f"{size(spared)}; host: of a machine's own memory",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("deepspeed")
    for name in ("weights", "gradients", "optimizer", "buffers", "activations", "logits", "total", "host"):
        shown.add_column(name, justify="right")
    for name, need in needs.items():
        s, mine, host = need.states, setups[name] == plan.setup, plan.host(setups[name])
        columns = (s.weights, s.gradients, s.optimizer, s.buffers, need.activations, need.passing, need.total, host)
        row = (f"{count / 2**power:,.1f}" for count in columns)
        shown.add_row(f"{name} <-" if mine else name, *row, style="bold" if mine else "")
    return shown


def size(count: float) -> str:
    """Bytes as people read them."""
    power, unit = max((p, u) for p, u in UNITS if p == 10 or count >= 2**p)
    return f"{count / 2**power:.1f} {unit}"
