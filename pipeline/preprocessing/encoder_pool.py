"""The encoders of one machine: a process for each device, or a thread of this process for a single CPU encoder.

Each encoder gets its next job when it asks for one, so a slow job does not hold up the other encoders.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal, cast

from pipeline.common.errors import InputError, MachineError
from pipeline.common.machine import num_cores
from pipeline.preprocessing.decode import DecodeOptions, Job
from pipeline.preprocessing.encoder import (
    DONE,
    NEXT_JOB,
    EncodedBatch,
    Encoder,
    encoder_loop,
    run_encoder_process,
)

_EXIT_GRACE_SECONDS = 5.0
MAX_DECODE_WORKERS = 16  # for each encoder; more do not make a GPU wait less


class EncoderPool:
    """Running encoders: one on each device, loaded by `load(device=...)`, each with its decode workers."""

    def __init__(
        self, load: Callable[..., Encoder], devices: list[str], decode_workers: int, options: DecodeOptions
    ) -> None:
        self._conns: list[Connection] = []
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._thread: threading.Thread | None = None
        context = multiprocessing.get_context("spawn")
        for device in devices:
            conn, encoder_end = context.Pipe()
            self._conns.append(conn)
            arguments = (encoder_end, partial(load, device=device), decode_workers, options)
            if devices == ["cpu"]:
                self._thread = threading.Thread(target=encoder_loop, args=arguments, daemon=True)
                self._thread.start()
            else:  # also a single GPU has its own process: in this one, writing shards would make it wait
                process = context.Process(target=run_encoder_process, args=arguments)
                try:
                    process.start()
                except OSError as error:
                    self.__exit__(type(error), error, None)
                    hint = "give fewer encoder_workers=, and run the same command again"
                    raise MachineError(f"an encoder process cannot be started ({error.strerror}): {hint}") from error
                encoder_end.close()
                self._processes[conn] = process

    def imap_unordered(self, jobs: Iterator[Job]) -> Iterator[EncodedBatch]:
        """The encoded batches of all jobs, in any order.

        Raises:
            InputError: A device is out of memory.
            MachineError: An encoder was killed, or its decode workers cannot work.
        """
        working = list(self._conns)
        while working:
            for ready in wait(working):
                conn = cast(Connection, ready)
                message = self._receive(conn)
                if isinstance(message, EncodedBatch):
                    yield message
                elif message == NEXT_JOB:
                    job = next(jobs, None)
                    with suppress(ConnectionError):  # a dead encoder is noticed when its next message is read
                        conn.send(job)
                else:
                    assert message == DONE
                    working.remove(conn)

    def _receive(self, conn: Connection) -> Any:
        try:
            message = conn.recv()
        except (EOFError, OSError) as error:  # maybe in the middle of a message
            process = self._processes.get(conn)
            if process is None:
                raise RuntimeError("the encoder ended without a message") from error
            process.join(_EXIT_GRACE_SECONDS)
            is_killed = process.exitcode == -9
            raise MachineError(
                f"an encoder process ended with exit code {process.exitcode}"
                + (" (killed, as by a machine out of memory: give fewer encoder_workers=)" if is_killed else "")
                + "; finished shards are kept: run the same command again"
            ) from error
        if isinstance(message, Exception):
            raise message
        return message

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for conn in self._conns:
            conn.close()  # which also ends the thread
        for process in self._processes.values():
            if kind is not None:
                process.kill()
            process.join()
        if self._thread:
            self._thread.join()  # a thread that is inside torch when Python exits crashes it


def resolve_devices(setting: str | list[str], encoder_workers: int | Literal["auto"]) -> list[str]:
    """The device of each encoder.

    Args:
        setting: "auto" for all GPUs, else the CPU; "cpu"; "cuda:0"; or a list of GPUs.
        encoder_workers: Encoder processes on a CPU; "auto" for one per core.

    Raises:
        InputError: A device does not exist, or is named twice.
    """
    devices = _resolve_device_names(setting)
    if devices != ["cpu"]:
        return devices
    return ["cpu"] * (num_cores() if encoder_workers == "auto" else encoder_workers)


def resolve_decode_workers(setting: int | Literal["auto"], devices: list[str]) -> int:
    """Decode workers of each encoder; "auto": one on a CPU, where encoding is slow, else a GPU's share of the cores."""
    if setting != "auto":
        return setting
    return 1 if devices[0] == "cpu" else max(1, min(MAX_DECODE_WORKERS, (num_cores() - 1) // len(devices)))


def _resolve_device_names(setting: str | list[str]) -> list[str]:
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    if setting == "auto":
        return gpus or ["cpu"]
    devices = [setting] if isinstance(setting, str) else list(setting)
    devices = gpus if devices == ["cuda"] else devices
    for device in devices:
        if device not in ("cpu", *gpus):
            raise InputError(f"devices={device}: there is no such device; this machine has cpu and {len(gpus)} GPUs")
    if not devices or len(set(devices)) < len(devices) or ("cpu" in devices and len(devices) > 1):
        raise InputError(f"devices={setting}: expected auto, cpu, or GPUs, each once")
    return devices
