"""Estimates of a run before anything is built: its steps, and the memory and disk that it takes on this hardware."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch
import yaml

from pipeline.common.paths import CONF
from pipeline.common.settings import parse_settings
from pipeline.models import model_stats
from pipeline.models.lora import Adapter
from pipeline.models.model_config import ModelConfig
from pipeline.training import memory, zero_patches
from pipeline.training.data import TrainData
from pipeline.training.distributed import World
from pipeline.training.memory import MemoryEstimate, ShardingConfig
from pipeline.training.settings import TrainSettings, ZeroSettings


@dataclass(frozen=True)
class Hardware:
    """What is available, on the rank that has the least of it.

    Attributes:
        device: its name.
        cuda: whether it is a GPU.
        ranks: number of ranks.
        ranks_per_node: number of ranks on this node.
        memory: free bytes on the device.
        host: free bytes of host memory.
        disk: free bytes for the run folder.
    """

    device: str
    cuda: bool
    ranks: int
    ranks_per_node: int
    memory: int
    host: int
    disk: int


@dataclass(frozen=True)
class RunEstimate:
    """A run on some hardware.

    Attributes:
        settings: the settings.
        model: the model.
        data: the datasets.
        hardware: the hardware.
        bf16: the precision.
        resumed_step: the step of the checkpoint that is resumed, or 0.
        adapter: what is trained; None: all weights.
    """

    settings: TrainSettings
    model: ModelConfig
    data: TrainData
    hardware: Hardware
    bf16: bool
    resumed_step: int = 0
    adapter: Adapter | None = None

    @cached_property
    def frames(self) -> int:
        """Frames of the longest clip."""
        return self.data.max_frames

    @property
    def sequence_steps(self) -> int:
        """Steps of the longest clip under the model's pattern."""
        return self.model.build_pattern().num_steps(self.frames + self.model.end_of_audio)

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return model_stats.num_trained(self.model, self.adapter)

    @property
    def clips_per_step(self) -> int:
        """Clips of one optimizer step, on all ranks."""
        return self.settings.trainer.clips_per_rank * self.hardware.ranks

    @property
    def epochs(self) -> float:
        """How often the run sees a clip, on average."""
        return self.settings.trainer.steps * self.clips_per_step / self.data.sampler.epoch_size

    @property
    def sharding(self) -> ShardingConfig:
        """The sharding of the settings."""
        return self._shard(self.settings.deepspeed.zero_optimization)

    def _shard(self, zero: ZeroSettings) -> ShardingConfig:
        return ShardingConfig.of(zero, self.bf16, self.hardware.ranks, self.hardware.ranks_per_node)

    def activation_mode(self, sharding: ShardingConfig) -> str:
        """How activations are stored: `checkpointed`, `compiled` or `eager`."""
        trainer = self.settings.trainer
        compiled = zero_patches.should_compile(trainer.compile, sharding.stage, self.hardware.cuda)
        return "checkpointed" if trainer.activation_checkpointing else "compiled" if compiled else "eager"

    def memory(self, sharding: ShardingConfig, mode: str | None = None, batch: int | None = None) -> MemoryEstimate:
        """Memory of one rank; the activation mode and the micro-batch are those of the settings if not given."""
        mode = self.activation_mode(sharding) if mode is None else mode
        batch = self.settings.trainer.micro_batch if batch is None else batch
        return memory.estimate_memory(self.model, sharding, batch, self.frames, mode, self.adapter)

    def host_bytes(self, sharding: ShardingConfig) -> int:
        """Bytes of host memory for all ranks of a node."""
        parameters, largest = model_stats.num_parameters(self.model), model_stats.largest_module(self.model)
        return memory.host_bytes(parameters, largest, sharding)

    def sharding_choices(self) -> dict[str, ShardingConfig]:
        """Each choice of conf/deepspeed by name, and `yours` if the settings are not among them."""
        if importlib.util.find_spec("deepspeed") is None:
            return {"zero0": self.sharding}
        choices = {name: self._shard(zero) for name, zero in load_zero_choices().items()}
        return choices if self.sharding in choices.values() else {**choices, "yours": self.sharding}

    @property
    def checkpoints(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and the maximum number on disk: an old one is deleted when a new one is complete."""
        t = self.settings.trainer
        saves = math.ceil(t.steps / t.save_every) if t.save_every else 1
        kept = t.keep + bool(t.keep_best) + (t.steps // t.keep_every if t.keep_every else 0) if t.keep else saves
        return memory.checkpoint_bytes(self.trained, self.sharding, ema=bool(t.ema)), min(kept + 1, saves)

    @property
    def disk_bytes(self) -> int:
        """Bytes that checkpoints and exports will take in addition to the checkpoints that exist."""
        size, count = self.checkpoints
        files = (Path(self.settings.run) / "checkpoints").rglob("*")
        exported = 4 * model_stats.num_parameters(self.model) + (4 * self.trained if self.adapter else 0)
        existing = sum(file.stat().st_size for file in files if file.is_file())
        return max(0, size * count - existing) + exported


def load_zero_choices() -> dict[str, ZeroSettings]:
    """`zero_optimization` of each file of conf/deepspeed, by name; those with offload come last."""
    files = sorted((CONF / "deepspeed").glob("*.yaml"), key=lambda file: ("_" in file.stem, file.stem))
    values = {file.stem: yaml.safe_load(file.read_text())["zero_optimization"] for file in files}
    return {name: parse_settings(ZeroSettings, zero, "deepspeed.zero_optimization.") for name, zero in values.items()}


def probe_hardware(world: World, run: Path) -> Hardware:
    """The least of each resource over all ranks. A barrier."""
    node_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world.world_size)
    ranks_per_node = min(world.world_size, node_ranks)
    cuda = world.device.type == "cuda"
    host = _free_host_memory()
    memory = torch.cuda.mem_get_info(world.device)[0] if cuda else host // ranks_per_node
    name = f"{torch.cuda.get_device_name(world.device)}" if cuda else "a share of host memory"
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    lowest = []
    for free in (memory, host, shutil.disk_usage(folder).free):
        on_ranks = world.all_reduce_sum([free if rank == world.rank else 0 for rank in range(world.world_size)])
        lowest.append(int(min(on_ranks)))
    return Hardware(name, cuda, world.world_size, ranks_per_node, *lowest)


def _free_host_memory() -> int:
    """Bytes of memory that processes can still allocate on this machine, within the limit of the control group."""
    free, group = int(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))
