"""AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Len

from pipeline.common.setting_types import FractionBelow1, NonNegative, Positive
from pipeline.training.optimizers import OPTIMIZERS, OptimizerSettings, parameter_groups

if TYPE_CHECKING:
    import torch
    from torch import nn


@OPTIMIZERS.register("adamw")
class AdamW(OptimizerSettings):
    """PyTorch's AdamW, fused on a GPU.

    Attributes:
        betas: Decay of the two moving averages.
        eps: Added to the denominator.
        weight_decay: Of matrices.
    """

    betas: Annotated[list[FractionBelow1], Len(2, 2)]
    eps: Positive
    weight_decay: NonNegative

    def build(self, model: nn.Module, device: torch.device) -> torch.optim.AdamW:
        from torch.optim import AdamW

        first, second = self.betas
        groups, is_fused = parameter_groups(model, self.weight_decay), device.type == "cuda"
        return AdamW(groups, lr=self.lr, betas=(first, second), eps=self.eps, fused=is_fused)
