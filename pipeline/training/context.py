"""What all parts of a training run need: its settings, its folder, and the ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.common.errors import InputError
from pipeline.training.distributed import World
from pipeline.training.settings import DeepSpeedSettings, TrainSettings, ZeroSettings


@dataclass(frozen=True)
class RunContext:
    """A training run on this rank."""

    settings: TrainSettings
    run_dir: Path
    world: World

    @classmethod
    def create(cls, settings: TrainSettings, world: World) -> RunContext:
        """The run of the settings. Without DeepSpeed, ZeRO's stage is 0, whatever is set."""
        if not world.has_deepspeed:
            plain = DeepSpeedSettings(zero_optimization=ZeroSettings(stage=0))
            settings = settings.model_copy(update={"deepspeed": plain})
        return cls(settings, Path(settings.run), world)

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
            InputError: `trainer.precision=bf16`, but there is none.
        """
        precision, missing = self.settings.trainer.precision, self._no_bf16
        if precision == "bf16" and missing:
            raise InputError(f"trainer.precision=bf16: {missing}; set auto or fp32")
        return precision == "bf16" or (precision == "auto" and self.world.device.type == "cuda" and not missing)

    @property
    def notes(self) -> list[str]:
        """A line for each thing that this machine has not, and what is used instead."""
        lines = []
        if not self.world.has_deepspeed:
            lines.append(
                f"DeepSpeed cannot be imported: plain PyTorch on one device ({self.world.device.type}) in fp32, with "
                "the losses and files of deepspeed=zero0"
            )
        elif self.settings.trainer.precision == "auto" and self.world.device.type == "cuda" and self._no_bf16:
            # fp16 would skip steps to find its loss scale, which a resumed run would not skip at the same clips
            lines.append(f"{self._no_bf16}: trainer.precision=auto is fp32")
        return lines

    @property
    def _no_bf16(self) -> str:
        """Why there is no bf16; empty if there is."""
        if not self.world.has_deepspeed:
            return "bf16 needs DeepSpeed"
        if self.world.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"{torch.cuda.get_device_name()} has no bf16"
        return ""
