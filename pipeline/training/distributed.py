"""One rank among others: starting, agreeing, and falling silent on all but the first."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.common.errors import InputError


@dataclass(frozen=True)
class World:
    """The number of this rank (0-based), how many there are, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sums of some numbers over all ranks, the same on each; a meeting point of all ranks."""
        if self.world_size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=_gloo_group())
        return summed.tolist()

    def gather(self, value: Any) -> list[Any]:
        """A small value of each rank, by rank, on all of them; a barrier."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value, group=_gloo_group())
        return values

    def barrier(self) -> None:
        """Until all ranks are here."""
        if self.world_size > 1:
            dist.barrier(group=_gloo_group())


_group: list[dist.ProcessGroup] = []
_LET_GO = 0.2  # seconds


def _gloo_group() -> dist.ProcessGroup:
    """A group for a few numbers on the host: GPUs need not stop for it."""
    return _group[0]


def init_distributed(timeout: float) -> World:
    """Join the ranks that a launcher started (deepspeed, torchrun, Kubeflow, srun with RANK...), or be the only one.

    timeout: seconds after which a rank that waits for another gives up. Raises InputError where a launcher sets some of
    the variables that it takes, and not all.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's to mend
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    rank, ranks, local, here = _numbers()
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # ranks of one machine share its cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
        with contextlib.suppress(AttributeError, KeyError):  # else built on a fresh machine for 85 s, and never used
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    limit = timedelta(seconds=timeout)
    if dist.is_initialized():  # by an earlier run of a sweep in this process
        return World(rank, ranks, device)
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, timeout=limit, verbose=False
    )
    atexit.register(_shutdown)
    if ranks > 1:
        group = dist.new_group(backend="gloo", timeout=limit)
        assert isinstance(group, dist.ProcessGroup), "every rank is a member"
        _group[:] = [group]
    return World(rank, ranks, device)


def _numbers() -> tuple[int, int, int, int]:
    """The number of this rank, how many there are, its number on this machine, and how many are there.

    Without LOCAL_RANK (Kubeflow sets none) each rank is taken to have a machine, or a GPU, of its own.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"RANK is set and {', '.join(missing)} not: unset RANK for one rank alone, or set what is missing"
        )
    on_its_own = not os.environ.get("LOCAL_RANK")
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if on_its_own:
            os.environ["LOCAL_RANK"] = str(rank % max(1, torch.cuda.device_count()))  # DeepSpeed reads it too
        local = int(os.environ["LOCAL_RANK"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or (1 if on_its_own else ranks))
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE, LOCAL_RANK: expected whole numbers ({error})") from None
    return rank, ranks, local, here


def _shutdown() -> None:
    """Leave the other ranks.

    A thread of gloo that lets go of a tensor while Python ends takes the process with it (SIGABRT): so died 2 of 26
    runs of two ranks that ended right after a word with each other.
    """
    _group.clear()
    dist.destroy_process_group()
    time.sleep(_LET_GO)  # DeepSpeed's groups have threads too, and nobody to join them


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
