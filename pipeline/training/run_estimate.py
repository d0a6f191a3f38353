"""A run before it is built: what it will do, and what that takes on which machine."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.data.dataloader import ShardedDataset
from pipeline.data.sampler import Sampler
from pipeline.models import model_stats
from pipeline.models.codec_gpt import ModelConfig
from pipeline.models.model_stats import ModelStateBytes, ShardingConfig
from pipeline.models.patterns import Pattern
from pipeline.training import setup as training
from pipeline.training import zero_patches
from pipeline.training.distributed import World

_BUCKET = 500_000_000  # DeepSpeed's own default


@dataclass(frozen=True)
class Hardware:
    """What there is. memory: bytes free on the device of the poorest rank; host: of its machine; disk: for the run."""

    device: str
    cuda: bool
    ranks: int
    ranks_here: int
    memory: int
    host: int
    disk: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank's device.

    passing: what comes and goes in the backward pass, the logits or a layer that is computed again, whichever is more.
    """

    states: ModelStateBytes
    activations: int
    passing: int

    @property
    def total(self) -> int:
        """All that may be there."""
        return self.states.total + self.activations + self.passing

    @property
    def least(self) -> int:
        """What must be there at one time: gradients take the place of activations."""
        return self.states.persistent + max(self.states.gradients, self.activations + self.passing)


@dataclass(frozen=True)
class RunEstimate:
    """What is to be trained on what, where, and what that takes. done: steps of a run that goes on."""

    cfg: DictConfig
    model: ModelConfig
    splits: list[tuple[ShardedDataset, ShardedDataset]]
    order: Sampler
    machine: Hardware
    bf16: bool
    done: int = 0

    @property
    def t(self) -> DictConfig:
        """Settings of the trainer."""
        return self.cfg.trainer

    @cached_property
    def frames(self) -> int:
        """Of the longest clip."""
        return training.max_frames(self.cfg, self.splits)

    @property
    def steps(self) -> int:
        """Of the longest clip under the model's pattern."""
        return _steps(self.model, self.frames)

    @property
    def clips(self) -> int:
        """Of one optimizer step, on all ranks."""
        return int(self.t.micro_batch * self.t.gradient_accumulation_steps * self.machine.ranks)

    def mode(self, setup: ShardingConfig) -> str:
        """How activations are kept under a setup."""
        compiled = zero_patches.should_compile(self.t.compile, setup.stage, self.machine.cuda)
        return "checkpointed" if self.t.activation_checkpointing else "compiled" if compiled else "eager"

    @property
    def setup(self) -> ShardingConfig:
        """What the settings say of DeepSpeed. Raises InputError where they contradict each other."""
        return parse_zero_config(self.cfg.deepspeed.zero_optimization, self.bf16, self.machine)

    def need(self, setup: ShardingConfig, mode: str, batch: int) -> MemoryEstimate:
        """What training under a setup takes; mode: of activations."""
        return estimate_memory(self.model, setup, batch, self.frames, mode)

    def host(self, setup: ShardingConfig) -> int:
        """Bytes of a machine's own memory, for all its ranks."""
        return model_stats.host_bytes(
            model_stats.num_parameters(self.model), model_stats.largest_module(self.model), setup
        )

    def setups(self) -> dict[str, ShardingConfig]:
        """Of every choice of conf/deepspeed, by name, and `yours` where the settings are none of them."""
        files = sorted((CONF / "deepspeed").glob("*.yaml"), key=lambda file: ("_" in file.stem, file.stem))
        known = {
            file.stem: parse_zero_config(OmegaConf.load(file).zero_optimization, self.bf16, self.machine)
            for file in files
        }
        return known if self.setup in known.values() else {**known, "yours": self.setup}

    @property
    def checkpoints(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and how many lie there at once: an old one goes when a new one is whole."""
        t = self.t
        saves = math.ceil(t.steps / t.save_every) if t.save_every else 1
        stay = t.keep + bool(t.keep_best) + (t.steps // t.keep_every if t.keep_every else 0) if t.keep else saves
        total = model_stats.num_parameters(self.model)
        return model_stats.checkpoint_bytes(total, self.setup, ema=bool(t.ema)), min(stay + 1, saves)

    @property
    def disk(self) -> int:
        """Bytes that checkpoints and the export will take beyond what lies in the run folder already."""
        size, count = self.checkpoints
        there = sum(file.stat().st_size for file in (Path(self.cfg.run) / "checkpoints").rglob("*") if file.is_file())
        return max(0, size * count - there) + 4 * model_stats.num_parameters(self.model)


def estimate_memory(model: ModelConfig, setup: ShardingConfig, batch: int, frames: int, mode: str) -> MemoryEstimate:
    """What training a model on clips of so many frames takes; mode: of activations, as `cost.activations`."""
    states = model_stats.model_state_bytes(model_stats.num_parameters(model), model_stats.largest_module(model), setup)
    shape = (batch, frames + model.end_of_audio)
    steps = _steps(model, frames)
    again = model_stats.recompute_bytes(model, setup, batch, steps) if mode == "checkpointed" else 0
    kept = model_stats.activation_bytes(model, setup, *shape, steps, mode)
    return MemoryEstimate(states, kept, max(model_stats.logits_bytes(model, *shape), again))


def _steps(model: ModelConfig, frames: int) -> int:
    return Pattern(model.pattern, model.codebooks).num_steps(frames + model.end_of_audio)


def parse_zero_config(settings: Mapping[str, Any], bf16: bool, machine: Hardware) -> ShardingConfig:
    """What DeepSpeed's `zero_optimization` says. Raises InputError where its settings contradict each other."""
    stage = int(settings.get("stage", 0))
    optimizer, weights = (
        (settings.get(name) or {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")
    )
    if stage not in range(4):
        raise InputError(f"deepspeed.zero_optimization.stage={stage}: DeepSpeed has stages 0, 1, 2 and 3")
    if weights and stage < 3:
        raise InputError(f"deepspeed offloads weights at stage 3 alone, and stage={stage}: deepspeed=zero3_offload")
    if optimizer and stage < 1:
        raise InputError("deepspeed offloads the optimizer from stage 1 on: deepspeed=zero2_offload")
    # where gradients stay where they are, they are flattened after the backward pass, in room that is free by then
    copied = stage > 1 or settings.get("contiguous_gradients", True)
    bucket = int(settings.get("reduce_bucket_size", _BUCKET)) if copied else 0
    return ShardingConfig(stage, bf16, machine.ranks, machine.ranks_here, optimizer, weights, bucket)


def probe_hardware(world: World, run: Path) -> Hardware:
    """The machines of all ranks, the poorest of each kind."""
    here = min(
        world.world_size, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world.world_size)
    )
    cuda = world.device.type == "cuda"
    host = _host_memory()
    memory = torch.cuda.mem_get_info(world.device)[0] if cuda else host // here
    name = f"{torch.cuda.get_device_name(world.device)}" if cuda else "a share of this machine's memory"
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    lowest = []
    for mine in (memory, host, shutil.disk_usage(folder).free):
        lowest.append(
            min(world.all_reduce_sum([mine if rank == world.rank else 0 for rank in range(world.world_size)]))
        )
    return Hardware(name, cuda, world.world_size, here, *map(int, lowest))


def _host_memory() -> int:
    """Bytes that this machine can still give to processes; less where a control group holds them to less."""
    told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(told["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))
