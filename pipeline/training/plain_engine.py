"""Plain PyTorch on one device, for systems without DeepSpeed: the same losses and files as its ZeRO-0 in fp32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import zero_to_fp32

FILE = "mp_rank_00_model_states.pt"


class PlainEngine:
    """A model and its optimizer, with those methods of a DeepSpeed engine that the trainer uses.

    Attributes:
        optimizer: clips gradients and skips bad steps itself (`zero_patches.add_clipping`).
        checkpoint_engine: writes the files of checkpoints; set before each save.
    """

    checkpoint_engine: Any

    def __init__(self, model: CodecGPT, optimizer: Any, gradient_accumulation_steps: int) -> None:
        self.module, self.optimizer = model, optimizer
        self._accumulation, self._micro_steps = gradient_accumulation_steps, 0

    def __call__(self, *batch: Tensor) -> Any:
        return self.module(*batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch."""
        (loss / self._accumulation).backward()

    def step(self) -> None:
        """Update the weights after the last micro-batch of a step."""
        self._micro_steps += 1
        if self._micro_steps % self._accumulation == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def train(self) -> None:
        """Prepare for training steps."""
        self.module.train()

    def eval(self) -> None:
        """Prepare for validation."""
        self.module.eval()

    def zero_optimization_stage(self) -> int:
        """ZeRO's stage."""
        return 0

    def zero_optimization_partition_weights(self) -> bool:
        """Whether each rank has a part of the weights."""
        return False

    def bfloat16_enabled(self) -> bool:
        """Whether weights are bf16."""
        return False

    def get_global_grad_norm(self) -> float:
        """The norm of the gradients of the last step."""
        return float(self.optimizer._global_grad_norm)

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        """Write the file of a checkpoint, with what DeepSpeed needs to load it at ZeRO-0."""
        assert not save_latest
        (Path(folder) / tag).mkdir(parents=True)
        model = self.module
        weights = model.state_dict()
        for name, parameter in model.named_parameters():
            if exclude_frozen_parameters and not parameter.requires_grad:
                del weights[name]
        state = {
            "module": weights, "buffer_names": [name for name, _ in model.named_buffers()],
            "optimizer": self.optimizer.state_dict(), "param_shapes": None, "lr_scheduler": None, "data_sampler": None,
            "random_ltd": None, "sparse_tensor_module_names": set(), "skipped_steps": 0, "dp_world_size": 1,
            "mp_world_size": 1, "global_steps": self._micro_steps // self._accumulation, "global_samples": 0,
            "ds_config": {}, "ds_version": "",
        }  # fmt: skip
        self.checkpoint_engine.save(state, str(Path(folder) / tag / FILE))

    def load_checkpoint(self, folder: str, tag: str, load_module_strict: bool) -> tuple[str, dict[str, Any]]:
        """Load a checkpoint that this class or DeepSpeed at ZeRO-0 in fp32 has written."""
        path = Path(folder) / tag / FILE
        state = zero_to_fp32.open_states(path)
        self.module.load_state_dict(state["module"], strict=load_module_strict)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # the file is memory-mapped
        return str(path), {}
