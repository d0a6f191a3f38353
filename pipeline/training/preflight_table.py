"""The tables that the preflight prints, 80 columns wide."""

from __future__ import annotations

from rich import box
from rich.table import Table

from pipeline.models import model_stats
from pipeline.models.model_config import ModelConfig
from pipeline.training.run_estimate import RunEstimate

_UNITS = ((10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB"))
_MEMORY_COLUMNS = ("weights", "grads", "optim", "activations", "logits", "total", "host")


def build_table(estimate: RunEstimate) -> Table:
    """All estimates of a run, except its memory."""
    model, t, hardware, data = estimate.model, estimate.settings.trainer, estimate.hardware, estimate.data
    frame_rate, epoch, clips = data.manifest.frame_rate, data.sampler.epoch_size, estimate.clips_per_step
    parts, head = model_stats.parameter_counts(model), model.head_cost
    hours, valid_hours = (
        sum(split.manifest.hours(split.split) for split in splits) for splits in (data.train, data.valid)
    )
    size, count = estimate.checkpoints
    resumed = f"; {estimate.resumed_step:,} are done" if estimate.resumed_step else ""
    rows = {
        "model": f"{sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {n:,}" for name, n in parts.items())
        + f"; {model.layers} layers of width {model.width}"
        + (f", {head.layers} layers of width {head.width} over the codes of a frame" if head.layers else ""),
        **_describe_finetuning(estimate),
        "sequence": f"{estimate.frames} frames ({estimate.frames / frame_rate:.2f} s, the longest clip) of "
        f"{model.codebooks} codebooks are {estimate.sequence_steps} steps under pattern {model.pattern}, of "
        f"{model.positions} positions{_describe_prefix(model)}",
        "step": f"{clips:,} clips = {t.micro_batch} micro_batch x {t.gradient_accumulation_steps} "
        f"gradient_accumulation_steps x {hardware.ranks} ranks",
        "epoch": f"{epoch:,} clips, {epoch / clips:,.1f} steps; {hours:,.3g} h of training audio, {valid_hours:,.3g} h "
        "of validation audio",
        "run": f"{t.steps:,} steps are {estimate.epochs:,.1f} epochs{resumed}",
        "dataset": "\n".join(
            f"{split.manifest.path}: {split.manifest.codec['name']} at {split.manifest.frame_rate:g} Hz, "
            f"{split.codebooks} of {split.manifest.codebooks} codebooks; prompts of {split.manifest.embedder['name']}, "
            f"{split.manifest.prompt_frames} of {split.manifest.prompt_dim} values"
            for split in data.train
        ),
        "device": f"{hardware.device}: {format_bytes(hardware.memory)} free; host memory: "
        f"{format_bytes(hardware.host)} free",
        "disk": f"{format_bytes(estimate.disk_bytes)} more: at most {count} checkpoints of {format_bytes(size)}, and "
        f"the export; {format_bytes(hardware.disk)} free at {estimate.settings.run}",
    }
    table = Table(title=f"preflight: {estimate.settings.name}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, row in rows.items():
        table.add_row(name, row)
    return table


def _describe_prefix(model: ModelConfig) -> str:
    """The conditions, if they are more than one vector."""
    if model.prefix_length == 1:
        return ""
    conditions = ", ".join(each.describe() for each in model.condition_settings)
    return f", behind a prefix of {model.prefix_length}: {conditions}"


def _describe_finetuning(estimate: RunEstimate) -> dict[str, str]:
    """The row about the base, if there is one."""
    finetune, adapter = estimate.settings.finetune, estimate.adapter
    if finetune.source is None:
        return {}
    rank = f"adapters of rank {adapter.rank}" if adapter else "all weights"
    kept = f"; {finetune.keep_weight:.0%} of the clips from {finetune.keep}" if finetune.keep else ""
    return {"base": f"{finetune.source}; {rank}, {estimate.trained:,} parameters, are trained{kept}"}


def build_memory_table(estimate: RunEstimate) -> Table:
    """Bytes of a rank under every choice of conf/deepspeed, for this model, micro-batch and precision."""
    choices = estimate.sharding_choices()
    memories = {name: estimate.memory(sharding) for name, sharding in choices.items()}
    power, unit = _unit_of(max(memory.total for memory in memories.values()))
    checkpointed = format_bytes(estimate.memory(estimate.sharding, "checkpointed").activations)
    table = Table(
        title=f"memory of a rank of {estimate.hardware.ranks} in {'bf16' if estimate.bf16 else 'fp32'}, in {unit}",
        caption=f"activations are {estimate.activation_mode(estimate.sharding)}; with "
        f"trainer.activation_checkpointing=true {checkpointed}; grads: with the buffers that reduce them; host: "
        "memory of a node for all its ranks",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("deepspeed")
    for name in _MEMORY_COLUMNS:
        table.add_column(name, justify="right")
    for name, memory in memories.items():
        is_selected = choices[name] == estimate.sharding
        counts = [memory.weights, memory.gradients + memory.buffers, memory.optimizer, memory.activations]
        counts += [memory.temporary, memory.total, estimate.host_bytes(choices[name])]
        cells = (f"{count / 2**power:,.1f}" for count in counts)
        table.add_row(f"{name} <-" if is_selected else name, *cells, style="bold" if is_selected else "")
    return table


def format_bytes(count: float) -> str:
    """A number of bytes in KiB, MiB, GiB or TiB, as `1.5 GiB`."""
    power, unit = _unit_of(count)
    return f"{count / 2**power:.1f} {unit}"


def _unit_of(count: float) -> tuple[int, str]:
    """The largest unit that is not larger than a number of bytes: its power of two, and its name."""
    return max((power, unit) for power, unit in _UNITS if power == 10 or count >= 2**power)
