"""Process-group setup and small collectives."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.common.errors import InputError, one_line
from pipeline.common.machine import accelerator

_SHUTDOWN_SECONDS = 0.2
_gloo_groups: list[dist.ProcessGroup] = []  # the one group, once there are several ranks


@dataclass(frozen=True)
class World:
    """Rank of this process (0-based), number of ranks, device of this rank, and whether DeepSpeed can be imported."""

    rank: int
    world_size: int
    device: torch.device
    has_deepspeed: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this rank logs and writes for all."""
        return self.rank == 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks, on all ranks. A barrier."""
        if self.world_size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=_gloo_group())
        return summed.tolist()

    def gather(self, value: Any) -> list[Any]:
        """A small object of each rank, in the order of ranks, on all ranks. A barrier."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value, group=_gloo_group())
        return values

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.world_size > 1:
            dist.barrier(group=_gloo_group())


def _gloo_group() -> dist.ProcessGroup:
    """A group for a few numbers in host memory, so that GPUs need not be synchronized."""
    return _gloo_groups[0]


def init_distributed(timeout: float) -> World:
    """Join the ranks of a launcher (deepspeed, torchrun, Kubeflow, srun with RANK...), or be the only rank.

    Args:
        timeout: seconds after which a rank stops waiting for another.

    Raises:
        InputError: the launcher sets only some of the variables that are needed; or there are several ranks, but no
            DeepSpeed.
    """
    try:
        import deepspeed
    except ImportError as error:
        return _only_rank(error)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # caused by DeepSpeed
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = "0"  # the system chooses a free port when it is bound, so that no other can take it
    rank, world_size, local_rank, local_world_size = _read_environment()
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # the ranks of a machine share its cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
        with contextlib.suppress(AttributeError, KeyError):  # it would be compiled for 85 s, but is not used
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if dist.is_initialized():  # by an earlier run of a sweep in this process
        return World(rank, world_size, device)
    backend, limit = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=limit, verbose=False)
    atexit.register(_shutdown)
    if world_size > 1:
        group = dist.new_group(backend="gloo", timeout=limit)
        assert isinstance(group, dist.ProcessGroup), "every rank is a member"
        _gloo_groups[:] = [group]
    return World(rank, world_size, device)


def _only_rank(error: ImportError) -> World:
    """The world without DeepSpeed, which `error` says is missing: one rank, without a process group."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: several ranks need DeepSpeed, which cannot be imported "
            f"({one_line(error)}); install it, or train on one device: python -m pipeline.train"
        ) from None
    return World(0, 1, torch.device(accelerator()), has_deepspeed=False)


def _read_environment() -> tuple[int, int, int, int]:
    """Rank, number of ranks, rank on this machine, and number of ranks on this machine.

    Without LOCAL_RANK (Kubeflow does not set it) each rank is assumed to have its own machine or GPU.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"RANK is set but {', '.join(missing)} are not: unset RANK to run a single rank, or set the missing ones"
        )
    is_alone = not os.environ.get("LOCAL_RANK")
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if is_alone:
            os.environ["LOCAL_RANK"] = str(rank % max(1, torch.cuda.device_count()))  # DeepSpeed reads it too
        local_rank = int(os.environ["LOCAL_RANK"])
        local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
        local_world_size = int(local_size or (1 if is_alone else world_size))
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE, LOCAL_RANK: expected whole numbers ({error})") from None
    return rank, world_size, local_rank, local_world_size


def _shutdown() -> None:
    """Leave the process group.

    A gloo thread that frees a tensor while Python shuts down aborts the process (SIGABRT): this happened to 2 of 26
    runs of two ranks that ended right after a collective.
    """
    _gloo_groups.clear()
    dist.destroy_process_group()
    time.sleep(_SHUTDOWN_SECONDS)  # DeepSpeed's groups have threads too, and nothing joins them
