"""Requests to stop a training: signals, and the end of the launcher that started it.

Before training there is nothing to save, so a request ends the process immediately with `EXIT_REQUEUE`, whatever its
main thread is waiting for. During training, the handlers of the trainer save first. `pipeline/train.py` calls `install`
before its slow imports, so this module must not import anything slow.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.machine import HANGUP, STOP_SIGNALS, process_group

if TYPE_CHECKING:
    from psutil import Process

_POLL_SECONDS = 1.0  # between two checks of the launcher
_LAUNCHERS = {
    "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run",
    "torch.distributed.launch",
}  # fmt: skip
_is_starting = threading.Event()


def stop_signals() -> list[signal.Signals]:
    """The signals that request a stop; SIGHUP, sent when the terminal is closed, only if `nohup` does not ignore it.

    The others count even if the parent ignores them, as the shells of `jobs/train.sbatch` ignore SIGUSR1.
    """
    return [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN]


def install() -> None:
    """Exit with `EXIT_REQUEUE` on a stop signal, or when the launcher ends, until `begin_training` is called."""
    _is_starting.set()
    reader, writer = socket.socketpair()  # Windows waits for sockets only
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in stop_signals():
        signal.signal(number, _ignore)  # a Python handler is needed for the number to reach the pipe
    threading.Thread(target=_watch, args=(reader,), name="stop-signals", daemon=True).start()


def begin_start() -> None:
    """From now on there is nothing to save: a stop request exits immediately, if `install` was called."""
    _is_starting.set()


def begin_training() -> None:
    """From now on the handlers of the trainer process stop requests."""
    _is_starting.clear()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The thread of `_watch` processes the signal."""


def _watch(reader: socket.socket) -> None:
    """Wait for stop signals and for the end of the launcher."""
    launchers = _find_launchers()
    if launchers is None:
        _stop()
    while True:
        ready, _, _ = select.select([reader], [], [], _POLL_SECONDS)
        numbers = reader.recv(4096) if ready else b""
        if _is_starting.is_set() and set(numbers) & set(stop_signals()):
            _stop()
        if launchers and not all(map(_is_alive, launchers)):
            launchers = []
            _stop()


def _stop() -> None:
    """Exit if there is nothing to save; otherwise send SIGTERM to the trainer."""
    if not _is_starting.is_set():
        signal.raise_signal(signal.SIGTERM)
        return
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal may be closed
            os.write(2, b"stopped on request before training began\n")
    os._exit(EXIT_REQUEUE)  # the main thread may be waiting for other ranks, in code that no exception reaches


def _find_launchers() -> list[Process] | None:
    """The launchers among the parents of this process, nearest first; None if the outermost has already ended.

    The `deepspeed` command starts `deepspeed.launcher.launch`, which starts the ranks. None ends when its parent ends.
    """
    import psutil

    try:
        launchers = [parent for parent in psutil.Process().parents() if _is_launcher(_command(parent))]
        return None if launchers and _is_orphan(launchers[-1]) else launchers
    except (psutil.Error, OSError):
        return []


def _command(process: Process) -> list[str]:
    """The command line of a process; empty if it belongs to another user and cannot be read."""
    import psutil

    try:
        command: list[str] = process.cmdline()
        return command
    except psutil.Error:
        return []


def _is_orphan(launcher: Process) -> bool:
    """Whether the `deepspeed` command that started a launcher has ended.

    A launcher that was started by a shell or by ssh is not an orphan: the former is in the process group of its parent,
    the latter has a `--node_rank`.
    """
    command, parent = _command(launcher), launcher.parent()
    has_node_rank = any(argument.startswith("--node_rank") for argument in command)
    if "deepspeed.launcher.launch" not in command or has_node_rank:
        return False
    return parent is None or process_group(parent.pid) != process_group(launcher.pid)


def _is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line starts the script or the module of a launcher."""
    return bool(_LAUNCHERS & {PurePath(argument).name for argument in command[:4]})


def _is_alive(process: Process) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
