"""Exponential moving average of the weights: often sounds better than the last step, and costs one copy of them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.common.errors import InputError
from pipeline.models.weights import save_tensors

FILE = "ema.safetensors"


class Ema:
    """mean <- decay * mean + (1 - decay) * weights, of those that are trained, in fp32, on the first rank.

    The decay is at most (1 + n) / (10 + n) at step n, so that early means do not consist of the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.mean = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
        torch._foreach_lerp_([self.mean[name] for name in weights], [*weights.values()], 1 - decay)

    def save(self, folder: Path) -> Path:
        """Write the mean to the folder of a checkpoint, and return the path of its file."""
        save_tensors({**self.mean, "updates": torch.tensor(self.updates)}, folder / FILE)
        return folder / FILE

    def load(self, folder: Path) -> None:
        """Read the mean of a checkpoint; without one, it stays at the weights.

        Raises:
            InputError: the file has no mean of some weight.
        """
        if (folder / FILE).exists():
            mean = load_file(folder / FILE)
            if missing := self.mean.keys() - mean.keys():
                raise InputError(f"{folder / FILE} has no mean of {min(missing)}: give another checkpoint")
            self.updates = int(mean.pop("updates"))
            self.mean = {name: value.to(self.mean[name].device) for name, value in mean.items()}
