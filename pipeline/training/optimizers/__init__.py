"""Optimizers. Each is a file of this package: a class with its settings, and the function that builds it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

from pipeline.common.registry import Registry
from pipeline.common.setting_types import NonNegative
from pipeline.common.settings import Choice, Settings
from pipeline.training.schedules import SCHEDULES, Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn


class OptimizerSettings(Settings):
    """The settings of an optimizer: those that every optimizer has. A subclass adds its own.

    Attributes:
        lr: The peak of the learning rate.
        schedule: The learning rate over the steps.
    """

    name: str
    lr: NonNegative
    schedule: Annotated[Schedule, Choice(SCHEDULES)]

    @abstractmethod
    def build(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The optimizer of a model that is on a device. The trainer sets the learning rate before each step."""


OPTIMIZERS = Registry[type[OptimizerSettings]]("optimizer", __name__)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices of linear layers, with weight decay; biases, norms, embeddings and vectors, without."""
    from torch import nn

    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in named if p.ndim >= 2 and id(p) not in embeddings and not name.endswith("bias")]
    decay_ids = {id(p) for p in decay}
    no_decay = [p for _, p in named if id(p) not in decay_ids]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
