"""The prompt: the vectors that the embedder has computed from a sound.

Letters: B clips, N vectors a clip, P prompt width, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.models.conditions import CONDITIONS
from pipeline.models.conditions.base import Condition, ConditionSettings, LabelValues

if TYPE_CHECKING:
    from pipeline.models.model_config import ModelConfig


@CONDITIONS.register("prompt")
class PromptSettings(ConditionSettings):
    """The settings of the prompt; the embedder of the training data decides the rest."""

    @classmethod
    def from_label(cls, kind: str, name: str, dropout: float, label: LabelValues) -> ConditionSettings:
        """See `ConditionSettings.from_label`."""
        raise InputError(f"conditions={name}: {kind} has vectors of the embedder, not values of a label")

    def build(self, config: ModelConfig, model: nn.Module) -> Condition:
        """See `ConditionSettings.build`."""
        return Prompt(self, config, model)

    def describe(self) -> str:
        """The name alone: the embedder says the rest."""
        return self.name

    def positions(self, config: ModelConfig) -> int:
        """One for each vector of a clip."""
        frames = config.embedder.get("frames", 1)
        if type(frames) is not int or frames < 1:
            raise InputError(f"embedder.frames={frames}: expected a whole number of 1 or more")
        return frames


class Prompt(Condition):
    """Normalizes prompts [B, P] or [B, N, P], and projects them to the width of the model.

    Its weights are attributes of the model, so that they have the names that they always had in files.
    """

    def __init__(self, settings: PromptSettings, config: ModelConfig, model: nn.Module) -> None:
        super().__init__(settings, settings.positions(config))
        self._owner: list[Any] = [model]  # in a list, PyTorch does not see a child here
        P, D = config.prompt_dim, config.width
        model.prompt = nn.Identity() if P == D else nn.Linear(P, D)
        model.null_prompt = nn.Parameter(torch.empty(D))
        model.register_buffer("prompt_mean", torch.zeros(P))
        model.register_buffer("prompt_std", torch.ones(P))

    def null_vector(self) -> Tensor:
        """The learned vector of a missing prompt: [D]."""
        null: Tensor = self._owner[0].null_prompt
        return null

    def embed(self, values: Tensor) -> Tensor:
        """Prompts [B, P] or [B, N, P] -> [B, N, D]."""
        model = self._owner[0]
        rows = values.flatten(0, -2).float()  # [B * N, P]
        scaled = (rows - model.prompt_mean.float()) / model.prompt_std.float()
        vectors: Tensor = model.prompt(scaled.to(model.null_prompt.dtype))
        return vectors.view(len(values), self.positions, -1)

    def init_weights(self) -> None:
        """Initialize the null vector."""
        nn.init.normal_(self.null_vector(), std=0.02)
