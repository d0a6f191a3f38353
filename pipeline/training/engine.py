"""The model of a run inside a DeepSpeed engine, or a plain one without DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.common.errors import InputError, redact_all
from pipeline.models import pretrained_gpt2
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from pipeline.models.pattern import Pattern
from pipeline.training import zero_patches
from pipeline.training.conditions import condition_settings
from pipeline.training.context import RunContext
from pipeline.training.data import TrainData
from pipeline.training.finetune import Base
from pipeline.training.plain_engine import PlainEngine
from pipeline.training.settings import TrainSettings

# dense bf16 TFLOP/s from NVIDIA's data sheets, by a part of the device's name
_PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "4090": 165, "V100": 125}


def model_config(settings: TrainSettings, data: TrainData, base: Base | None = None) -> ModelConfig:
    """The model of the settings or of the base, for these datasets.

    Raises:
        InputError: the longest clip has more steps than `model.positions`, or than the positions of the base; or the
            datasets do not have a label of `conditions`.
    """
    if base is not None:
        return base.model_config(settings, data.max_frames, data.vocabularies)
    manifest, model, codebooks = data.manifest, settings.model, settings.codec.streams
    frames, end_of_audio, pattern = data.max_frames, settings.data.end_of_audio, settings.pattern.name
    steps = Pattern(settings.pattern, codebooks).num_steps(frames + end_of_audio)
    positions = max(1024, steps) if model.positions == "auto" else model.positions
    if steps > positions:
        raise InputError(
            f"clips of {frames} frames are {steps} steps under pattern={pattern} with {codebooks} codebooks, but "
            f"model.positions={positions}: set model.positions=auto, or crop with data.seconds"
        )
    return ModelConfig(
        codebooks=codebooks,
        pattern=pattern,
        prompt_dim=manifest.prompt_dim,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        positions=positions,
        dropout=model.dropout,
        prompt_dropout=model.prompt_dropout,
        end_of_audio=end_of_audio,
        codebook_size=manifest.codec["codebook_size"],
        frames=frames,
        codec={**manifest.codec, "codebooks": codebooks},
        embedder=manifest.embedder,
        pattern_options=settings.pattern.options(),
        conditions=condition_settings(settings, data.vocabularies),
    )


def build_model(
    settings: TrainSettings, config: ModelConfig, data: TrainData, from_pretrained: bool, base: Base | None = None
) -> CodecGPT:
    """Build the model, with the same weights on all ranks.

    Args:
        settings: the settings.
        config: the model.
        data: gives the prompts from which their normalization is estimated.
        from_pretrained: whether to load `model.pretrained`; unnecessary where a checkpoint is loaded afterwards.
        base: the model that is fine-tuned; it has its own normalization.

    Raises:
        InputError: pretrained weights cannot be loaded, or no prompt is finite.
    """
    torch.manual_seed(settings.seed)
    if base is not None:
        model = base.build_model(config)
    else:
        model = pretrained_gpt2.build_model(config, settings.model.pretrained if from_pretrained else None)
    if config.has_prompt and (base is None or not base.config.has_prompt):
        model.fit_prompt_normalization(data.sample_prompts())
    return model


def build_engine(context: RunContext, model: CodecGPT, load_universal: bool = False) -> Any:
    """Put the model and its optimizer into a DeepSpeed engine, or into a `PlainEngine` where there is no DeepSpeed.

    Args:
        context: the run.
        model: the model; it is moved to the device of this rank.
        load_universal: whether the engine is going to load a universal checkpoint (`Checkpoint.needs_universal`).

    Raises:
        InputError: settings exclude each other.
    """
    trainer, device, bf16 = context.settings.trainer, context.world.device, context.bf16
    stage = context.settings.deepspeed.zero_optimization.stage
    if trainer.ema and stage == 3:
        raise InputError("trainer.ema needs all weights on the first rank: use deepspeed=zero2, or trainer.ema=0")
    model.to(device)
    model.label_smoothing = trainer.label_smoothing
    if trainer.activation_checkpointing:
        model.enable_checkpointing()
    if zero_patches.should_compile(trainer.compile, stage, device.type == "cuda"):
        model.compile_parts()
    optimizer = context.settings.optim.build(model, device)
    has_zero_optimizer = stage > 0 or bf16  # else the engine uses our optimizer as it is
    if not has_zero_optimizer:
        zero_patches.add_clipping(optimizer, trainer.max_grad_norm)
    if not context.world.has_deepspeed:
        return PlainEngine(model, optimizer, trainer.gradient_accumulation_steps)
    import deepspeed

    config = {
        **context.settings.deepspeed.to_dict(),
        "train_micro_batch_size_per_gpu": trainer.micro_batch,
        "gradient_accumulation_steps": trainer.gradient_accumulation_steps,
        "gradient_clipping": trainer.max_grad_norm if has_zero_optimizer else 0.0,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice per step
    }
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    engine.config = redact_all(engine.config)  # DeepSpeed stores it in every checkpoint
    zero_patches.patch_zero_optimizer(engine)
    return engine


def peak_flops(device: torch.device) -> float:
    """Dense bf16 operations per second of a GPU by its data sheet; 0 for an unknown device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((teraflops * 1e12 for part, teraflops in _PEAK_TFLOPS.items() if part in name), 0.0)
