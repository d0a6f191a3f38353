"""Checkpoints written while training goes on: DeepSpeed hands its state over, and a thread writes a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine


class Writer(TorchCheckpointEngine):
    """DeepSpeed's own files, one after another, by a thread of each rank.

    A rank's share of the state lies in its machine's memory until it is written; the step after waits for the copy
    alone. DeepSpeed's decoupled engine does the like through a process of its own and an extension to be compiled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zipfile_serialization = True  # which can be mapped by those who read it
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: list[Future[None]] = []

    def save(self, state_dict: Any, path: str) -> None:
        """Copy, and return; what cannot be written is raised by `wait`."""
        self._writing.append(self._pool.submit(super().save, copied(state_dict, {}), path))

    @property
    def busy(self) -> bool:
        """Whether something is still to be written."""
        return not all(future.done() for future in self._writing)

    def wait(self) -> None:
        """Until all is on disk. Raises what a file could not be written for, such as OSError for a full disk."""
        writing, self._writing = self._writing, []
        for future in writing:
            future.result()


def copied(state: Any, known: dict[int, torch.Tensor]) -> Any:
    """The same containers around copies of their tensors, in this machine's memory.

    known: the copies by the tensors' identity, so that what is shared stays so.
    """
    if isinstance(state, torch.Tensor):
        if id(state) not in known:
            known[id(state)] = torch.empty_like(state, device="cpu").copy_(state.detach())
        return known[id(state)]
    if isinstance(state, Mapping):
        return type(state)((name, copied(value, known)) for name, value in state.items())  # type: ignore[call-arg]
    if type(state) in (list, tuple):
        return type(state)(copied(value, known) for value in state)
    return state
