"""Parameter counts and training FLOPs of a CodecGPT, from its config alone: nothing is built."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.models.lora import Adapter
from pipeline.models.model_config import ModelConfig


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Number of parameters of each part of a CodecGPT."""
    D, K = config.width, config.codebooks
    classes = config.codebook_size + 1
    prompt, labels = _condition_parameters(config)
    total = sum(labels.values())
    return {
        "backbone": config.backbone_positions * D + config.layers * (12 * D * D + 13 * D) + 2 * D,
        "codes": K * classes * D,
        "head": config.head_cost.parameters,
        **({"prompt": prompt} if prompt else {}),
        **({"labels": total} if total else {}),
    }


def _condition_parameters(config: ModelConfig) -> tuple[int, dict[str, int]]:
    """Number of parameters of the prompt, which belong to the model itself, and of each other condition, by name."""
    with torch.device("meta"):  # shapes without memory
        model = nn.Module()
        conditions = [settings.build(config, model) for settings in config.condition_settings]
    labels = {each.name: sum(p.numel() for p in each.parameters()) for each in conditions}
    return sum(p.numel() for p in model.parameters()), labels


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters of a CodecGPT."""
    return sum(parameter_counts(config).values())


def adapter_parameters(config: ModelConfig, adapter: Adapter) -> int:
    """Number of parameters that an adapter adds: in + out of the four matrices of a layer are 4, 2, 5 and 5 D."""
    return adapter.rank * 16 * config.width * config.layers


def num_trained(config: ModelConfig, adapter: Adapter | None) -> int:
    """Number of parameters that are trained."""
    if adapter is None:
        return num_parameters(config)
    counts = parameter_counts(config)
    if adapter.train_embeddings:
        embeddings = sum(counts.get(part, 0) for part in ("codes", "head", "prompt", "labels"))
    else:
        labels = _condition_parameters(config)[1]
        embeddings = sum(labels[name] for name in adapter.new_conditions)
    return adapter_parameters(config, adapter) + embeddings


def largest_module(config: ModelConfig) -> int:
    """Number of parameters of the largest module."""
    D, codes = config.width, parameter_counts(config)["codes"]
    return max(config.head_cost.largest_module, codes, 4 * D * D + 4 * D, config.backbone_positions * D)


def training_flops(config: ModelConfig, frames: float, adapter: Adapter | None = None) -> float:
    """Floating-point operations of the forward and backward pass on one clip.

    6 per weight and position (Kaplan et al. 2020, arXiv:2001.08361), plus 12 L D S S for the products of attention. A
    weight that is frozen beside an adapter takes 4, since it has no gradient.
    """
    D, K, cost = config.width, config.codebooks, config.head_cost
    steps = config.build_pattern().num_steps(round(frames)) + config.prefix_length - 1
    head = frames * cost.products  # each code is predicted by the classifier of its codebook only
    attention = 12 * (config.layers * D * steps**2 + cost.layers * cost.width * K**2 * frames)
    backbone = 12 * config.layers * D * D * steps
    if adapter is None:
        return 6 * (backbone + head) + attention
    trained = adapter_parameters(config, adapter) * steps
    return 4 * backbone + 6 * trained + (6 if adapter.train_embeddings else 4) * head + attention
