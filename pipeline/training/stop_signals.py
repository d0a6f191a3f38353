"""Requests to stop a training: signals, and the end of the launcher that started it.

Before training there is nothing to save, so a request ends the process with `EXIT_REQUEUE` at once, whatever its main
thread is waiting for. While it trains, the trainer's own handlers save first. `pipeline/train.py` calls `install`
before its slow imports, so this module imports nothing slow itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.common.exit_codes import EXIT_REQUEUE

if TYPE_CHECKING:
    from psutil import Process

_INTERVAL = 1.0  # seconds between two looks at the launcher
_LAUNCHERS = {
    "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run",
    "torch.distributed.launch",
}  # fmt: skip
_starting = threading.Event()


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop: SIGHUP, of a terminal that goes, only where `nohup` does not have it ignored."""
    asked = [signal.SIGUSR1, signal.SIGTERM]
    return asked if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*asked, signal.SIGHUP]


def install() -> None:
    """Exit with `EXIT_REQUEUE` on a stop signal, or when the launcher ends, until `begin_training` is called."""
    _starting.set()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in stop_signals():
        signal.signal(number, _ignore)  # a handler of Python's, so that the number reaches the pipe
    threading.Thread(target=_watch, args=(reader,), name="stop-signals", daemon=True).start()


def begin_start() -> None:
    """From now on there is nothing to save: a stop request exits at once, if `install` was called."""
    _starting.set()


def begin_training() -> None:
    """From now on the handlers of the trainer answer stop requests."""
    _starting.clear()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The thread of `_watch` answers."""


def _watch(reader: int) -> None:
    launchers = _find_launchers()
    if launchers is None:
        _stop()
    while True:
        ready, _, _ = select.select([reader], [], [], _INTERVAL)
        numbers = os.read(reader, 4096) if ready else b""
        if _starting.is_set() and set(numbers) & set(stop_signals()):
            _stop()
        if launchers and not all(map(_is_alive, launchers)):
            launchers = []
            _stop()


def _stop() -> None:
    """End a process that has nothing to save; ask one that trains to save."""
    if not _starting.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.write(2, b"stopped on request before training began\n")
    os._exit(EXIT_REQUEUE)  # the main thread may be waiting for other ranks, in code that no exception reaches


def _find_launchers() -> list[Process] | None:
    """The launchers above this process, nearest first; None if the uppermost has ended already.

    The `deepspeed` command starts `deepspeed.launcher.launch`, which starts the ranks. Neither ends with the other.
    """
    import psutil

    try:
        launchers = [parent for parent in psutil.Process().parents() if _program(_command(parent)) in _LAUNCHERS]
        return None if launchers and _is_orphan(launchers[-1]) else launchers
    except (psutil.Error, OSError):
        return []


def _command(process: Process) -> list[str]:
    """The command line of a process; empty where another user's is not shown."""
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_orphan(launcher: Process) -> bool:
    """Whether the `deepspeed` command that started a launcher has ended.

    A child of a shell or of ssh is none: that is in its parent's process group, or has the number of its machine.
    """
    command, above = _command(launcher), launcher.parent()
    if _program(command) != "deepspeed.launcher.launch" or any(word.startswith("--node_rank") for word in command):
        return False
    return above is None or os.getpgid(above.pid) != os.getpgid(launcher.pid)


def _program(command: Sequence[str]) -> str:
    """The script or module that a Python process runs."""
    if not command or not PurePath(command[0]).name.startswith("python"):
        return ""
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, "")
        if not word.startswith("-"):
            return PurePath(word).name
    return ""


def _is_alive(process: Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
