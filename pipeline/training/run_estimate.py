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
from pipeline.config.cli import CONF
from pipeline.data.dataloader import Split
from pipeline.data.sampler import Ordering
from pipeline.models import model_stats
from pipeline.models.codec_gpt import ModelConfig
from pipeline.models.model_stats import Setup, States
from pipeline.models.patterns import Pattern
from pipeline.training import setup as training
from pipeline.training import zero_patches
from pipeline.training.distributed import World

_BUCKET = 500_000_000  # DeepSpeed's own default


@dataclass(frozen=True)
class Machine:
    """What there is. memory: bytes free on the device of the poorest rank; host: of its machine; disk: for the run."""

    device: str
    cuda: bool
    ranks: int
    ranks_here: int
    memory: int
    host: int
    disk: int


@dataclass(frozen=True)
class Need:
    """Bytes on one rank's device.

    passing: what comes and goes in the backward pass, the logits or a layer that is computed again, whichever is more.
    """

    states: States
    activations: int
    passing: int

    @property
    def total(self) -> int:
        """All that may be there."""
        return self.states.total + self.activations + self.passing

    @property
    def least(self) -> int:
        """What must be there at one time: gradients take the place of activations."""
        return self.states.standing + max(self.states.gradients, self.activations + self.passing)


@dataclass(frozen=True)
class Plan:
    """What is to be trained on what, where, and what that takes. done: steps of a run that goes on."""

    cfg: DictConfig
    model: ModelConfig
    splits: list[tuple[Split, Split]]
    order: Ordering
    machine: Machine
    bf16: bool
    done: int = 0

    @property
    def t(self) -> DictConfig:
        """Settings of the trainer."""
        return self.cfg.trainer

    @cached_property
    def frames(self) -> int:
        """Of the longest clip."""
        return training.most_frames(self.cfg, self.splits)

    @property
    def steps(self) -> int:
        """Of the longest clip under the model's pattern."""
        return _steps(self.model, self.frames)

    @property
    def clips(self) -> int:
        """Of one optimizer step, on all ranks."""
        return int(self.t.micro_batch * self.t.accumulate * self.machine.ranks)

    def mode(self, setup: Setup) -> str:
        """How activations are kept under a setup."""
        compiled = zero_patches.compiles(self.t.compile, setup.stage, self.machine.cuda)
        return "checkpointed" if self.t.activation_checkpointing else "compiled" if compiled else "eager"

    @property
    def setup(self) -> Setup:
        """What the settings say of DeepSpeed. Raises InputError where they contradict each other."""
        return setup_of(self.cfg.deepspeed.zero_optimization, self.bf16, self.machine)

    def need(self, setup: Setup, mode: str, batch: int) -> Need:
        """What training under a setup takes; mode: of activations."""
        return need_of(self.model, setup, batch, self.frames, mode)

    def host(self, setup: Setup) -> int:
        """Bytes of a machine's own memory, for all its ranks."""
        return model_stats.host(model_stats.parameters(self.model), model_stats.largest(self.model), setup)

    def setups(self) -> dict[str, Setup]:
        """Of every choice of conf/deepspeed, by name, and `yours` where the settings are none of them."""
        files = sorted((CONF / "deepspeed").glob("*.yaml"), key=lambda file: ("_" in file.stem, file.stem))
        known = {file.stem: setup_of(OmegaConf.load(file).zero_optimization, self.bf16, self.machine) for file in files}
        return known if self.setup in known.values() else {**known, "yours": self.setup}

    @property
    def checkpoints(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and how many lie there at once: an old one goes when a new one is whole."""
        t = self.t
        saves = math.ceil(t.steps / t.save_every) if t.save_every else 1
        stay = t.keep + bool(t.keep_best) + (t.steps // t.keep_every if t.keep_every else 0) if t.keep else saves
        total = model_stats.parameters(self.model)
        return model_stats.checkpoint(total, self.setup, ema=bool(t.ema)), min(stay + 1, saves)

    @property
    def disk(self) -> int:
        """Bytes that checkpoints and the export will take beyond what lies in the run folder already."""
        size, count = self.checkpoints
        there = sum(file.stat().st_size for file in (Path(self.cfg.run) / "checkpoints").rglob("*") if file.is_file())
        return max(0, size * count - there) + 4 * model_stats.parameters(self.model)


def need_of(model: ModelConfig, setup: Setup, batch: int, frames: int, mode: str) -> Need:
    """What training a model on clips of so many frames takes; mode: of activations, as `cost.activations`."""
    states = model_stats.states(model_stats.parameters(model), model_stats.largest(model), setup)
    shape = (batch, frames + model.end_of_audio)
    steps = _steps(model, frames)
    again = model_stats.recomputed(model, setup, batch, steps) if mode == "checkpointed" else 0
    kept = model_stats.activations(model, setup, *shape, steps, mode)
    return Need(states, kept, max(model_stats.logits(model, *shape), again))


def _steps(model: ModelConfig, frames: int) -> int:
    return Pattern(model.pattern, model.codebooks).length(frames + model.end_of_audio)


def setup_of(settings: Mapping[str, Any], bf16: bool, machine: Machine) -> Setup:
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
    return Setup(stage, bf16, machine.ranks, machine.ranks_here, optimizer, weights, bucket)


def measure(world: World, run: Path) -> Machine:
    """The machines of all ranks, the poorest of each kind."""
    here = min(world.ranks, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world.ranks))
    cuda = world.device.type == "cuda"
    host = _host_memory()
    memory = torch.cuda.mem_get_info(world.device)[0] if cuda else host // here
    name = f"{torch.cuda.get_device_name(world.device)}" if cuda else "a share of this machine's memory"
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    lowest = []
    for mine in (memory, host, shutil.disk_usage(folder).free):
        lowest.append(min(world.total([mine if rank == world.rank else 0 for rank in range(world.ranks)])))
    return Machine(name, cuda, world.ranks, here, *map(int, lowest))


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
