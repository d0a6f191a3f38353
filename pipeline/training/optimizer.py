"""The optimizer, and its groups of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices of linear maps decay; biases, norms, embeddings and other vectors do not."""
    spared = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in named if p.ndim >= 2 and id(p) not in spared and not name.endswith("bias")]
    chosen = {id(p) for p in decay}
    rest = [p for _, p in named if id(p) not in chosen]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


class NonFiniteSafeAdamW(torch.optim.AdamW):
    """AdamW that clips by itself, and does nothing at all where a gradient is not finite.

    So do the optimizers that DeepSpeed puts around one, but there is none around it in fp32 at ZeRO-0. `overflow` and
    `_global_grad_norm` are what theirs are called, and where its engine looks.
    """

    overflow, _global_grad_norm = False, 0.0

    def __init__(self, groups: list[dict[str, Any]], clip: float, **settings: Any) -> None:
        """clip: the largest norm of all gradients; 0 leaves them alone."""
        super().__init__(groups, **settings)
        self._clip = clip

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights, unless a gradient is not finite."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(weights, self._clip or math.inf))
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()


def build_adamw(
    model: nn.Module, settings: Mapping[str, Any], device: torch.device, clip: float | None = None
) -> torch.optim.AdamW:
    """AdamW over the groups of `model`, fused on a GPU; `settings` are those of `conf/optim`.

    clip: largest norm of the gradients, where DeepSpeed puts no optimizer of its own around this one to see to it.
    """
    groups = parameter_groups(model, settings["weight_decay"])
    told: dict[str, Any] = {
        "lr": settings["lr"],
        "betas": tuple(settings["betas"]),
        "eps": settings["eps"],
        "fused": device.type == "cuda",
    }
    return torch.optim.AdamW(groups, **told) if clip is None else NonFiniteSafeAdamW(groups, clip, **told)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
