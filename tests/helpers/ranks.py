"""Ranks as processes of their own, forked from a server that has imported the slow packages once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "pipeline" / "train.py")
_PRELOADED = ["deepspeed", "hydra", "pipeline.hub.model_card", "pipeline.training.run", "pipeline.training.preflight"]


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
    """Running ranks, and the file of each to which it prints."""

    processes: list[BaseProcess]
    outputs: list[Path]

    def poll(self) -> int | None:
        """The exit code of the first rank; None while it runs."""
        return self.processes[0].exitcode

    def kill(self) -> None:
        """Send SIGKILL to all ranks."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> str:
        """Wait until all ranks have ended without an error; what they have printed."""
        for process in self.processes:
            process.join()
        printed = "".join(path.read_text() for path in self.outputs)
        assert [process.exitcode for process in self.processes] == [0] * len(self.processes), printed
        return printed


def start_ranks(folder: Path, program: str, *arguments: str, ranks: int = 2) -> Ranks:
    """Start a program on some ranks, as srun would do.

    Args:
        folder: the current folder of the ranks.
        program: the path of a script, or the name of a module.
        arguments: its arguments.
        ranks: their number.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the server imports torch
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    outputs = [Path(tempfile.mkstemp(dir=folder, suffix=f".rank-{n}.txt")[1]) for n in range(ranks)]
    processes: list[BaseProcess] = []
    for n, output in enumerate(outputs):
        env = {**fresh_env(folder / "extensions"), **world, "RANK": str(n), "LOCAL_RANK": str(n)}
        process = context.Process(
            target=run_program, args=(program, arguments, env, str(folder), str(output)), daemon=True
        )
        process.start()
        processes.append(process)
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = threads
    return Ranks(processes, outputs)


def run_program(program: str, arguments: tuple[str, ...], env: dict[str, str], folder: str, output: str) -> None:
    """Run a program in a forked process, as Python would run it."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
