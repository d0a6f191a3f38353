"""The writer of checkpoint files: with a checksum of each, and on request while training goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from pipeline.common.files import sha256_file


class AsyncCheckpointEngine(TorchCheckpointEngine):
    """Writes DeepSpeed's own files of one checkpoint, one after another, in a thread of each rank.

    In the background, a rank's share of the state is copied to its machine's memory until it is written; the next step
    waits for the copy alone. DeepSpeed's decoupled engine does the like through a process of its own and an extension
    to be compiled.
    """

    def __init__(self, background: bool = True) -> None:
        """background: whether `save` returns before the file is written."""
        super().__init__()
        self._background = background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: list[tuple[str, Future[str]]] = []  # file name, sha256

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file; in the background, copy its state and return: `wait` raises what could not be written."""
        if self._background:
            state_dict = copy_to_cpu(state_dict, {})
        self._submit(path, _save, state_dict, path)

    def add_checksum(self, path: Path) -> None:
        """Take the checksum of a file that another function has written."""
        self._submit(str(path), sha256_file, path)

    def _submit(self, path: str, function: Any, *arguments: Any) -> None:
        future = self._pool.submit(function, *arguments)
        self._writing.append((Path(path).name, future))
        if not self._background:
            future.result()

    @property
    def busy(self) -> bool:
        """Whether something is still to be written."""
        return not all(future.done() for _, future in self._writing)

    def wait(self) -> dict[str, str]:
        """Wait until all files are written, and return the sha256 of each by its name.

        Raises OSError for a file that could not be written, for a full disk for instance.
        """
        writing, self._writing = self._writing, []
        try:
            return {name: future.result() for name, future in writing}
        finally:
            self._pool.shutdown(wait=False)


class _HashedFile:
    """A binary file that is written from start to end, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None  # that ended the writing: PyTorch raises a RuntimeError in its place

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
    """Write a state as PyTorch does, in the format that can be mapped, and return the sha256 of the file."""
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


def copy_to_cpu(state: Any, known: dict[int, torch.Tensor]) -> Any:
    """The same containers around copies of their tensors, in this machine's memory.

    known: the copies by the tensors' identity, so that what is shared stays so.
    """
    if isinstance(state, torch.Tensor):
        if id(state) not in known:
            known[id(state)] = torch.empty_like(state, device="cpu").copy_(state.detach())
        return known[id(state)]
    if isinstance(state, Mapping):
        return type(state)((name, copy_to_cpu(value, known)) for name, value in state.items())  # type: ignore[call-arg]
    if type(state) in (list, tuple):
        return type(state)(copy_to_cpu(value, known) for value in state)
    return state
