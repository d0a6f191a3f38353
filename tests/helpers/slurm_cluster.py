"""A throw-away Slurm cluster of three nodes on this machine, and the questions that a test asks of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
HERE = Path(__file__).parents[1] / "slurm"
ROOT = HERE.parents[1]
SITE = f"""
PARTITION=test ACCOUNT= GPU_TYPE=
TRAIN_NODES=2 TRAIN_RANKS=2 TRAIN_GPUS=2 TRAIN_CPUS=1 TRAIN_MEM=0 TRAIN_TIME=00:30:00
ENCODE_PARTS=2 ENCODE_GPUS=1 ENCODE_CPUS=1 ENCODE_MEM=4G ENCODE_TIME=00:30:00 ENCODE_STARTS=3
LISTEN_GPUS=1 LISTEN_CPUS=2 LISTEN_MEM=4G LISTEN_TIME=00:30:00
VENV='{sys.prefix}' MODULES= CONTAINER= CONTAINER_BINDS=
"""  # the GPUs are make-believe: the same flags, and ranks that find none


class Cluster:
    """Two nodes of two ranks, and a spare one; jobs run in `work`."""

    def __init__(self, folder: Path) -> None:
        """Start it. Skips where it cannot be had."""
        # munged wants every folder above its socket open to all, which pytest's are not
        self.root, self.work = Path(tempfile.mkdtemp(prefix="slurm-test-")) / "cluster", folder / "work of mine"
        self.root.parent.chmod(0o755)
        self.work.mkdir()
        (folder / "site.env").write_text(SITE)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_"))}
        self.env |= {"SLURM_TEST_ROOT": str(self.root), "SLURM_CONF": str(self.root / "slurm.conf")}
        self.env |= {"SLURM_TEST_NODES": "3"}
        self.env |= {"SITE": str(folder / "site.env"), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
        done = self.script("start_cluster.sh")
        if done.returncode == 77:
            pytest.skip(done.stdout.strip().splitlines()[-1])
        assert done.returncode == 0, done.stdout

    def script(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.call("bash", str(HERE / name), *words, seconds=180)

    def call(self, *words: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """A command in the work folder; its output and errors together (into a file: daemons keep pipes open)."""
        told = self.work.parent / "told"
        with told.open("w") as file:
            done = subprocess.run(
                words, cwd=self.work, env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=seconds
            )
        return subprocess.CompletedProcess(words, done.returncode, told.read_text())

    def submit(self, *words: str) -> dict[str, str]:
        """`jobs/submit.sh`; the jobs by the name of their step."""
        done = self.call("bash", str(ROOT / "jobs" / "submit.sh"), *words)
        assert done.returncode == 0, done.stdout
        return dict(re.findall(r"^(\w+) +job (\d+)$", done.stdout, re.MULTILINE))

    def look(self, job: str) -> list[dict[str, str]]:
        """What Slurm says of a job; of an array, of each of its tasks."""
        told = self.call("scontrol", "show", "job", "-o", job).stdout
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in told.splitlines() if line.startswith("JobId=")]

    def wait(self, job: str, seconds: float = 400) -> dict[str, str]:
        """The job (of an array: its worst task) once it has ended."""
        living = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "STAGE_OUT")
        self.until(lambda: (tasks := self.look(job)) and not any(t["JobState"] in living for t in tasks), seconds, job)
        return max(self.look(job), key=lambda task: task["JobState"] != "COMPLETED")

    def until(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """Wait for a condition, and give what made it true. Fails, with the jobs' last lines, where it never is."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds:.0f} s for {what}\n{self.call('squeue').stdout}\n{self.logs()}")
            time.sleep(0.3)
        return found

    def logs(self) -> str:
        """The ends of the jobs' logs."""
        files = sorted(self.work.rglob("slurm/*.log"), key=lambda file: file.stat().st_mtime)[-4:]
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def processes(self, *words: str) -> list[int]:
        """The python processes whose command line or variables hold all of these words."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                program = (folder / "exe").resolve().name
            except OSError:
                continue
            if program.startswith("python") and all(word.encode() in told for word in words):
                found.append(int(folder.name))
        return sorted(found)

    def kill_node(self, node: str) -> None:
        """All of a node at once, as when its power goes."""
        parent = int((self.root / "run" / f"{node}.parent").read_text())
        child = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGKILL)
