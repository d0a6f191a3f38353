"""DeepSpeed's step at ZeRO-1 and 2, without a launch for each weight and without making the host wait more than once.

A GPU is fed by its host: what a step does weight by weight, or reads back from the GPU on the way, is time in which the
GPU has nothing to do. The results are DeepSpeed's own, but for the rounding of the norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def should_compile(asked: bool | str, stage: int, cuda: bool) -> bool:
    """Whether trainer.compile=asked (true, false or auto) compiles: auto does on a GPU, but at ZeRO-3.

    There DeepSpeed's hooks break each layer's graph into several, which cost more than they save.
    """
    return asked is True or (asked == "auto" and cuda and stage < 3)


def patch_zero_optimizer(engine: Any) -> None:
    """Replace, in the optimizer of an engine at stage 1 or 2, how gradients are looked at.

    Overflow is told by the norm of all gradients, the one number that the host reads; it is taken in fp32 by a handful
    of launches; and they are clipped without asking first whether they must be.
    """
    zero = engine.optimizer
    if engine.zero_optimization_stage() not in (1, 2) or not getattr(zero, "compute_grad_norm", False):
        return
    zero.check_overflow = lambda partition_gradients: None  # what is not finite in a gradient is so in the norm of all
    if zero.cpu_offload:
        return

    def norm_of_all(norm_type: int = 2) -> Tensor:
        mine = [gradient for group in zero.averaged_gradients.values() for gradient in group]
        squared = torch.stack(torch._foreach_norm(mine, 2, dtype=torch.float32)).square().sum()
        dist.all_reduce(squared, group=zero.dp_process_group)
        return squared.sqrt()

    def clip(gradients: list[Tensor], norm: Tensor) -> None:
        if zero.clip_grad:
            torch._foreach_mul_(gradients, 1 / ((norm + 1e-6) / zero.clip_grad).clamp(min=1))

    zero.scaled_global_norm, zero.unscale_and_clip_grads = norm_of_all, clip
