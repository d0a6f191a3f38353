"""DeepSpeed's checkpoint engine with checksums, which can write in the background while training continues."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.common.files import sha256_file

try:
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
except ImportError:  # `plain_engine` needs no more than `save`
    TorchCheckpointEngine = object


class AsyncCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]  # it has no types
    """Writes the files of one checkpoint, in order, in one thread per rank.

    In the background, the state of the rank is copied to host memory first; the next step waits only for this
    copy. DeepSpeed's decoupled engine does something similar with a process and an extension that must be compiled.
    """

    def __init__(self, background: bool = True) -> None:
        """Create an engine for one checkpoint; background: whether `save` returns before the file is written."""
        super().__init__()
        self._background = background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[tuple[str, Future[str]]] = []  # file name, sha256

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file. In the background, return after the state is copied; `wait` raises the errors of writing."""
        if self._background:
            state_dict = copy_to_cpu(state_dict, {})
        self._submit(path, _save, state_dict, path)

    def add_checksum(self, path: Path) -> None:
        """Compute the checksum of a file that was written by another function."""
        self._submit(str(path), sha256_file, path)

    def _submit(self, path: str, function: Any, *arguments: Any) -> None:
        future = self._pool.submit(function, *arguments)
        self._pending.append((Path(path).name, future))
        if not self._background:
            future.result()

    @property
    def busy(self) -> bool:
        """Whether files are still being written."""
        return not all(future.done() for _, future in self._pending)

    def wait(self) -> dict[str, str]:
        """Wait until all files are written, and return the sha256 of each by name.

        Raises:
            OSError: a file could not be written, for example because the disk is full.
        """
        pending, self._pending = self._pending, []
        try:
            return {name: future.result() for name, future in pending}
        finally:
            self._pool.shutdown(wait=False)


class _HashedFile:
    """A binary file that is written sequentially and hashed at the same time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None  # the error that ended the writing, for which PyTorch raises a RuntimeError

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _save(state: Any, path: str) -> str:
    """Write a state with `torch.save`, in the format that can be memory-mapped, and return the sha256 of the file."""
    try:
        with Path(path).open("wb") as file:
            hashed = _HashedFile(file)
            try:
                torch.save(state, hashed, _use_new_zipfile_serialization=True)  # type: ignore[arg-type]
            except RuntimeError as error:
                raise hashed.error or error from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    return hashed.digest.hexdigest()


def copy_to_cpu(state: Any, copies: dict[int, torch.Tensor]) -> Any:
    """Copy containers and their tensors to host memory.

    Args:
        state: a tensor, a container of states, or any other object, which is not copied.
        copies: the copies made so far, by the id of the tensor, so that shared tensors stay shared.
    """
    if isinstance(state, torch.Tensor):
        if id(state) not in copies:
            copies[id(state)] = torch.empty_like(state, device="cpu").copy_(state.detach())
        return copies[id(state)]
    if isinstance(state, Mapping):
        return type(state)((name, copy_to_cpu(value, copies)) for name, value in state.items())  # type: ignore[call-arg]
    if type(state) in (list, tuple):
        return type(state)(copy_to_cpu(value, copies) for value in state)
    return state
