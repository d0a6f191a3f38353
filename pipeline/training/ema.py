"""A running mean of the weights: often sounds better than the last step, and costs one copy on the first rank."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.common.errors import InputError
from pipeline.models.weights import save_tensors

FILE = "ema.safetensors"


class Ema:
    """mean <- decay * mean + (1 - decay) * weights, in fp32, with the decay ramped up over the first steps.

    Early means would else be of the fresh weights: at step n the decay is at most (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.mean = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = {name: p.detach().float() for name, p in model.named_parameters()}
        torch._foreach_lerp_([self.mean[name] for name in weights], [*weights.values()], 1 - decay)

    def save(self, folder: Path) -> Path:
        """Write the mean beside a checkpoint's other files, and return the path of its file."""
        save_tensors({**self.mean, "updates": torch.tensor(self.updates)}, folder / FILE)
        return folder / FILE

    def load(self, folder: Path) -> None:
        """Read it back; a checkpoint without one leaves the mean at the weights that were loaded.

        Raises InputError where it is not of these weights.
        """
        if (folder / FILE).exists():
            found = load_file(folder / FILE)
            if unset := self.mean.keys() - found.keys():
                raise InputError(f"{folder / FILE} has no mean of {min(unset)}: give another checkpoint")
            self.updates = int(found.pop("updates"))
            self.mean = {name: value.to(self.mean[name].device) for name, value in found.items()}
