"""The model of a run inside a DeepSpeed engine."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError, redact_all
from pipeline.models import pretrained_gpt2
from pipeline.models.codec_gpt import CodecGPT, ModelConfig
from pipeline.models.pattern import build_pattern
from pipeline.training import zero_patches
from pipeline.training.data import TrainData
from pipeline.training.distributed import World
from pipeline.training.optimizer import build_adamw

# dense bf16 TFLOP/s from NVIDIA's data sheets, by a part of the device's name
_PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "4090": 165, "V100": 125}


def model_config(cfg: DictConfig, data: TrainData) -> ModelConfig:
    """The model of the settings, for these datasets.

    Raises:
        InputError: the longest clip has more steps than `model.positions`.
    """
    manifest, m = data.manifest, cfg.model
    frames = data.max_frames
    steps = build_pattern(cfg.pattern.name, cfg.codec.codebooks).num_steps(frames + cfg.data.end_of_audio)
    positions = max(1024, steps) if m.positions == "auto" else int(m.positions)
    if steps > positions:
        raise InputError(
            f"clips of {frames} frames are {steps} steps under pattern={cfg.pattern.name} with {cfg.codec.codebooks} "
            f"codebooks, but model.positions={positions}: set model.positions=auto, or crop with data.seconds"
        )
    return ModelConfig(
        codebooks=cfg.codec.codebooks,
        pattern=cfg.pattern.name,
        prompt_dim=manifest.prompt_dim,
        width=m.width,
        layers=m.layers,
        heads=m.heads,
        positions=positions,
        dropout=m.dropout,
        prompt_dropout=m.prompt_dropout,
        end_of_audio=cfg.data.end_of_audio,
        codebook_size=manifest.codec["codebook_size"],
        frames=frames,
        codec={**manifest.codec, "codebooks": cfg.codec.codebooks},
        embedder=manifest.embedder,
    )


def build_model(cfg: DictConfig, config: ModelConfig, data: TrainData, from_pretrained: bool) -> CodecGPT:
    """Build the model, with the same weights on all ranks.

    Args:
        cfg: the settings.
        config: the model.
        data: gives the prompts from which their normalization is estimated.
        from_pretrained: whether to load `model.pretrained`; unnecessary where a checkpoint is loaded afterwards.

    Raises:
        InputError: pretrained weights cannot be loaded, or no prompt is finite.
    """
    torch.manual_seed(cfg.seed)
    model = pretrained_gpt2.build_model(config, cfg.model.pretrained if from_pretrained else None)
    model.fit_prompt_normalization(data.sample_prompts())
    return model


def build_engine(cfg: DictConfig, model: CodecGPT, world: World, load_universal: bool = False) -> Any:
    """Put the model and its optimizer into a DeepSpeed engine.

    Args:
        cfg: the settings.
        model: the model; it is moved to the device of this rank.
        world: the ranks.
        load_universal: whether the engine is going to load a universal checkpoint (`checkpoint.needs_universal`).

    Raises:
        InputError: settings exclude each other.
    """
    import deepspeed

    t = cfg.trainer
    stage = cfg.deepspeed.zero_optimization.stage
    if t.ema and stage == 3:
        raise InputError("trainer.ema needs all weights on the first rank: use deepspeed=zero2, or trainer.ema=0")
    model.to(world.device)
    model.label_smoothing = t.label_smoothing
    if t.activation_checkpointing:
        model.backbone.activation_checkpointing_enable()
    if zero_patches.should_compile(t.compile, stage, world.device.type == "cuda"):
        model.compile_parts()
    bf16 = use_bf16(cfg, world.device.type)
    max_grad_norm = float(t.max_grad_norm)
    has_zero_optimizer = stage > 0 or bf16  # else the engine uses our optimizer as it is
    optimizer = build_adamw(model, cfg.optim, world.device, None if has_zero_optimizer else max_grad_norm)
    settings = _deepspeed_settings(cfg, bf16, max_grad_norm if has_zero_optimizer else 0.0, load_universal)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    engine.config = redact_all(engine.config)  # DeepSpeed stores it in every checkpoint
    zero_patches.patch_zero_optimizer(engine)
    return engine


def _deepspeed_settings(cfg: DictConfig, bf16: bool, clipping: float, load_universal: bool) -> dict[str, Any]:
    """The config that `deepspeed.initialize` takes."""
    return {
        **OmegaConf.to_container(cfg.deepspeed, resolve=True),  # type: ignore[dict-item]
        "train_micro_batch_size_per_gpu": cfg.trainer.micro_batch,
        "gradient_accumulation_steps": cfg.trainer.gradient_accumulation_steps,
        "gradient_clipping": clipping,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice per step
    }


def use_bf16(cfg: DictConfig, device: str) -> bool:
    """Whether weights and activations are bf16 on a device (`cuda` or `cpu`).

    Raises:
        InputError: the precision is unknown, is not supported by the device, or is set in `deepspeed.*`.
    """
    precision = cfg.trainer.precision
    if precision not in ("auto", "bf16", "fp32"):
        raise InputError(f"trainer.precision={precision}: expected auto, bf16 or fp32")
    if cfg.deepspeed.get("fp16") or cfg.deepspeed.get("bf16"):
        raise InputError("deepspeed.fp16 and deepspeed.bf16 are not used: set trainer.precision instead")
    bf16 = bool(precision == "bf16" or (precision == "auto" and device == "cuda"))
    if bf16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name()} does not support bf16: set trainer.precision=fp32")
    return bf16


def peak_flops(device: torch.device) -> float:
    """Dense bf16 operations per second of a GPU by its data sheet; 0 for an unknown device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((teraflops * 1e12 for part, teraflops in _PEAK_TFLOPS.items() if part in name), 0.0)
