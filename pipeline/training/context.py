"""What all parts of a training run need: its settings, its folder, and the ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.common.errors import InputError
from pipeline.training.distributed import World
from pipeline.training.settings import TrainSettings


@dataclass(frozen=True)
class RunContext:
    """A training run on this rank."""

    settings: TrainSettings
    run_dir: Path
    world: World

    @property
    def clips_per_step(self) -> int:
        """Clips of an optimizer step, on all ranks."""
        return self.settings.trainer.clips_per_rank * self.world.world_size

    def with_steps(self, steps: int) -> RunContext:
        """The same run with another number of optimizer steps."""
        trainer = self.settings.trainer.model_copy(update={"steps": steps})
        return replace(self, settings=self.settings.model_copy(update={"trainer": trainer}))

    @property
    def bf16(self) -> bool:
        """Whether weights and activations are bf16, else fp32.

        Raises:
            InputError: The GPU does not support bf16.
        """
        precision, is_cuda = self.settings.trainer.precision, self.world.device.type == "cuda"
        bf16 = precision == "bf16" or (precision == "auto" and is_cuda)
        if bf16 and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError(f"{torch.cuda.get_device_name()} does not support bf16: set trainer.precision=fp32")
        return bf16
