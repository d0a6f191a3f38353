"""AdamW and its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices of linear layers, with weight decay; biases, norms, embeddings and vectors, without."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in named if p.ndim >= 2 and id(p) not in embeddings and not name.endswith("bias")]
    decay_ids = {id(p) for p in decay}
    no_decay = [p for _, p in named if id(p) not in decay_ids]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


class NonFiniteSafeAdamW(torch.optim.AdamW):
    """AdamW with gradient clipping that skips the step on non-finite gradients.

    DeepSpeed's wrappers of an optimizer do both, but in fp32 at ZeRO-0 it has no wrapper. `overflow` and
    `_global_grad_norm` are the attributes of its wrappers, which its engine reads.
    """

    overflow, _global_grad_norm = False, 0.0

    def __init__(self, groups: list[dict[str, Any]], max_grad_norm: float, **settings: Any) -> None:
        """Create the optimizer; max_grad_norm: maximum norm of all gradients, 0: no clipping."""
        super().__init__(groups, **settings)
        self._max_grad_norm = max_grad_norm

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights, unless a gradient is not finite."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(weights, self._max_grad_norm or math.inf))
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()


def build_adamw(
    model: nn.Module, settings: Mapping[str, Any], device: torch.device, max_grad_norm: float | None = None
) -> torch.optim.AdamW:
    """AdamW over the parameter groups of a model, fused on a GPU.

    Args:
        model: the model.
        settings: `optim.*`.
        device: the device of the model.
        max_grad_norm: for a `NonFiniteSafeAdamW`, where DeepSpeed has no wrapper; None: a plain AdamW.
    """
    groups = parameter_groups(model, settings["weight_decay"])
    options: dict[str, Any] = {
        "lr": settings["lr"],
        "betas": tuple(settings["betas"]),
        "eps": settings["eps"],
        "fused": device.type == "cuda",
    }
    if max_grad_norm is None:
        return torch.optim.AdamW(groups, **options)
    return NonFiniteSafeAdamW(groups, max_grad_norm, **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
