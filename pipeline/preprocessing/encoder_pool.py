"""The encoders of one machine: a process a device, or a thread of ours where there is one CPU worker only.

Jobs are handed out as they are asked for, so a slow job never holds up the other encoders.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, cast

from pipeline.common.errors import InputError, MachineError, first_line
from pipeline.preprocessing.decode import DecodeOptions, Job
from pipeline.preprocessing.encoder import (
    DONE,
    NEXT_JOB,
    EncodedBatch,
    Encoder,
    WorkerError,
    encoder_loop,
    run_encoder_process,
)

_EXIT_GRACE_SECONDS = 5.0  # seconds
MAX_DECODE_WORKERS = 16  # of one encoder: more do not make a GPU wait less


class EncoderPool:
    """Encoders at work: one on each device, loaded by `load(device=...)`, each with so many readers."""

    def __init__(self, load: Callable[..., Encoder], names: list[str], readers: int, how: DecodeOptions) -> None:
        self._conns: list[Connection] = []
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._thread: threading.Thread | None = None
        context = multiprocessing.get_context("spawn")
        for name in names:
            ours, theirs = context.Pipe()
            self._conns.append(ours)
            work = (theirs, partial(load, device=name), readers, how)
            if names == ["cpu"]:
                self._thread = threading.Thread(target=encoder_loop, args=work, daemon=True)
                self._thread.start()
            else:  # a GPU also has a process that does nothing else: whoever writes shards would make it wait
                process = context.Process(target=run_encoder_process, args=work)
                try:
                    process.start()
                except OSError as error:
                    self.__exit__(type(error), error, None)
                    hint = "give fewer encoder_workers=, and run the same command again"
                    raise MachineError(f"an encoder process cannot be started ({error.strerror}): {hint}") from error
                theirs.close()
                self._processes[ours] = process

    def imap_unordered(self, jobs: Iterator[Job]) -> Iterator[EncodedBatch]:
        """What comes of the jobs, in any order.

        Raises:
            InputError: a device is out of memory.
            MachineError: an encoder was killed, or its readers cannot work.
        """
        at_work = list(self._conns)
        while at_work:
            for ready in wait(at_work):
                conn = cast(Connection, ready)
                message = self._receive(conn)
                if isinstance(message, EncodedBatch):
                    yield message
                elif message == NEXT_JOB:
                    job = next(jobs, None)
                    with suppress(ConnectionError):  # an encoder that died is heard of next
                        conn.send(job)
                else:
                    assert message == DONE
                    at_work.remove(conn)

    def _receive(self, conn: Connection) -> Any:
        try:
            message = conn.recv()
        except (EOFError, OSError) as error:  # maybe in the middle of a message
            process = self._processes.get(conn)
            if process is None:
                raise RuntimeError("the encoder ended without a word") from error
            process.join(_EXIT_GRACE_SECONDS)
            raise MachineError(
                f"an encoder process ended with exit code {process.exitcode}"
                + (
                    " (killed, as by a machine out of memory: give fewer encoder_workers=)"
                    if process.exitcode == -9
                    else ""
                )
                + "; what is whole stays: run the same command again"
            ) from error
        if isinstance(message, WorkerError):
            if message.kind == "MachineError":
                raise MachineError(message.text)
            if message.kind == "OutOfMemoryError":
                first = first_line(message.text)
                raise InputError(f"the device is out of memory ({first}): give a smaller batch= or max_seconds=")
            raise RuntimeError(f"an encoder failed: {message.text}")
        return message

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for conn in self._conns:
            conn.close()  # a thread of ours ends when nobody listens
        for process in self._processes.values():
            if kind is not None:
                process.kill()
            process.join()
        if self._thread:
            self._thread.join()  # a thread that is still in torch when Python ends takes it down


def resolve_devices(setting: str | list[str], workers: str | int) -> list[str]:
    """The device of each encoder that is to work.

    setting: "auto" for all GPUs, else the CPU; "cpu"; "cuda:0"; or a list of GPUs. workers: processes on a CPU, "auto"
    for one a core. Raises InputError for a device that is not there.
    """
    names = _resolve_device_names(setting)
    if workers != "auto" and (not isinstance(workers, int) or workers < 1):
        raise InputError(f"encoder_workers={workers}: expected a number of processes of 1 or more, or auto")
    return ["cpu"] * (num_cores() if workers == "auto" else int(workers)) if names == ["cpu"] else names


def resolve_decode_workers(setting: str | int, names: list[str]) -> int:
    """Reader processes of each encoder: one on a CPU, where encoding takes all the time; a GPU's share of the cores.

    Raises InputError for a setting that is neither a number of processes nor auto.
    """
    if setting != "auto":
        if not isinstance(setting, int) or setting < 0:
            raise InputError(f"decode_workers={setting}: expected a number of processes for each encoder, or auto")
        return setting
    return 1 if names[0] == "cpu" else max(1, min(MAX_DECODE_WORKERS, (num_cores() - 1) // len(names)))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_device_names(setting: str | list[str]) -> list[str]:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "auto":
        return [f"cuda:{i}" for i in range(there)] or ["cpu"]
    names = [setting] if isinstance(setting, str) else list(setting)
    names = [f"cuda:{i}" for i in range(there)] if names == ["cuda"] else names
    for name in names:
        if name not in ("cpu", *(f"cuda:{i}" for i in range(there))):
            raise InputError(f"devices={name}: there is no such device; this machine has cpu and {there} GPUs")
    if not names or len(set(names)) < len(names) or ("cpu" in names and len(names) > 1):
        raise InputError(f"devices={setting}: expected auto, cpu, or GPUs, each once")
    return names
