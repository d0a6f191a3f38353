"""Ranks as processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "pipeline" / "train.py")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fresh_env(extensions: Path) -> dict[str, str]:
    """The environment of a fresh shell: no PYTHONPATH, the programs of this environment first, no extension built."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **env,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def single_rank() -> Iterator[None]:
    """In the block, this process is the only rank of what it trains."""
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield
    logging.getLogger().handlers[:] = handlers


@dataclass(frozen=True)
class Ranks:
    """Running ranks."""

    processes: list[WarmPython]

    def poll(self) -> int | None:
        """The exit code of the first rank; None while it runs."""
        return self.processes[0].poll()

    def kill(self) -> None:
        """Send SIGKILL to all ranks."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def wait(self) -> str:
        """Wait until all ranks have ended without an error; what they have printed."""
        codes = [process.wait() for process in self.processes]
        printed = "".join(process.output.read_text() for process in self.processes)
        assert codes == [0] * len(self.processes), printed
        return printed


def start_ranks(folder: Path, program: str, *arguments: str, ranks: int = 2) -> Ranks:
    """Start a program on some ranks, as srun would do.

    Args:
        folder: the current folder of the ranks.
        program: the path of a script, or the name of a module.
        arguments: its arguments.
        ranks: their number.
    """
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [program, *arguments] if program.endswith(".py") else ["-m", program, *arguments]
    processes = []
    for n in range(ranks):
        env = {**fresh_env(folder / "extensions"), **world, "RANK": str(n), "LOCAL_RANK": str(n)}
        output = Path(tempfile.mkstemp(dir=folder, suffix=f".rank-{n}.txt")[1])
        processes.append(WarmPython(command, output, env=env, cwd=folder))
    return Ranks(processes)
