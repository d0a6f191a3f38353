"""The lock of a run folder exists exactly as long as its process runs, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.training.distributed import World
from pipeline.training.run_lock import NAME, RunLock, lock_run

ALONE = World(0, 1, torch.device("cpu"))


def test_second_training_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with lock_run(tmp_path, ALONE):
        message = rf"run=\S+: process {os.getpid()} on {socket.gethostname()} is training in it; .*another run=DIR"
        with pytest.raises(InputError, match=message):
            lock_run(tmp_path, ALONE)
    assert not [*tmp_path.iterdir()]
    with lock_run(tmp_path, ALONE):
        assert (tmp_path / NAME).exists()


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
import fcntl, os, time
file = os.open({str(tmp_path / NAME)!r}, os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, b'{{"host": "{socket.gethostname()}", "pid": 1}}')
print("locked", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="process 1 on"):
        lock_run(tmp_path, ALONE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with lock_run(tmp_path, ALONE):
        pass


@contextmanager
def locked_elsewhere(run: Path) -> Iterator[int]:
    """The lock of another machine, as a network file system shows it."""
    file = os.open(run / NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, json.dumps({"host": "node7", "pid": 7}).encode())
    yield file
    os.close(file)


def test_lock_of_a_crashed_machine_is_replaced(tmp_path: Path) -> None:
    """A requeue on another node must not be blocked forever by a lock that is never released."""
    with locked_elsewhere(tmp_path):
        lock = RunLock(tmp_path, stale=0.3)
        lock.acquire()
        with lock:
            assert json.loads((tmp_path / NAME).read_text())["host"] == socket.gethostname()
            with pytest.raises(InputError, match=f"on {socket.gethostname()} is training in it"):
                RunLock(tmp_path).acquire()


def test_lock_with_a_heartbeat_is_respected(tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path) as file:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(0.05):
                os.utime(file)

        thread = threading.Thread(target=beat)
        thread.start()
        with pytest.raises(InputError, match="process 7 on node7 is training in it"):
            RunLock(tmp_path, stale=5).acquire()
        done.set()
        thread.join()


def test_owner_updates_its_heartbeat(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, heartbeat=0.05)
    lock.acquire()
    with lock:
        os.utime(tmp_path / NAME, (0, 0))
        for _ in range(100):
            if (tmp_path / NAME).stat().st_mtime > 0:
                break
            threading.Event().wait(0.05)
        assert (tmp_path / NAME).stat().st_mtime > 0
