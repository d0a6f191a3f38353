"""Gradient norm, clipping and overflow check: faster ones at ZeRO-1 and ZeRO-2, and one at ZeRO-0 in fp32, without any.

The host launches the work of a GPU: whatever a step does weight by weight, or reads back from the GPU, is time in which
the GPU is idle. The results are those of DeepSpeed, except for rounding in the norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def should_compile(setting: bool | str, stage: int, is_cuda: bool) -> bool:
    """Whether `trainer.compile` (true, false or auto) compiles: auto does on a GPU, except at ZeRO-3.

    There DeepSpeed's hooks break the graph of each layer into several, which cost more than they save.
    """
    return setting is True or (setting == "auto" and is_cuda and stage < 3)


def patch_zero_optimizer(engine: Any) -> None:
    """Replace how the optimizer of an engine at stage 1 or 2 checks and clips gradients.

    The norm of all gradients is computed in fp32 by a few launches, and is the only number that the host reads: it also
    shows overflow. Clipping is applied without reading first whether it is needed.
    """
    zero = engine.optimizer
    if engine.zero_optimization_stage() not in (1, 2) or not getattr(zero, "compute_grad_norm", False):
        return
    zero.check_overflow = lambda partition_gradients: None  # a non-finite gradient makes the norm non-finite
    if zero.cpu_offload:
        return

    def global_norm(norm_type: int = 2) -> Tensor:
        gradients = [gradient for group in zero.averaged_gradients.values() for gradient in group]
        squared = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)).square().sum()
        dist.all_reduce(squared, group=zero.dp_process_group)
        return squared.sqrt()

    def clip(gradients: list[Tensor], norm: Tensor) -> None:
        if zero.clip_grad:
            torch._foreach_mul_(gradients, 1 / ((norm + 1e-6) / zero.clip_grad).clamp(min=1))

    zero.scaled_global_norm, zero.unscale_and_clip_grads = global_norm, clip


def add_clipping(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
    """Make an optimizer clip gradients, and skip its step where one is not finite.

    DeepSpeed's wrappers of an optimizer do both, but in fp32 at ZeRO-0 it has no wrapper. `overflow` and
    `_global_grad_norm` are the attributes of its wrappers, which its engine reads.

    Args:
        optimizer: the optimizer, whose `step` is replaced.
        max_grad_norm: maximum norm of all gradients; 0: no clipping.
    """
    wrapped: Any = optimizer
    update = optimizer.step

    def step() -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        wrapped._global_grad_norm = float(nn.utils.clip_grad_norm_(weights, max_grad_norm or math.inf))
        wrapped.overflow = not math.isfinite(wrapped._global_grad_norm)
        if not wrapped.overflow:
            update()

    wrapped.step, wrapped.overflow, wrapped._global_grad_norm = step, False, 0.0
