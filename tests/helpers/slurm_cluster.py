"""A temporary Slurm cluster of three nodes on this machine."""

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
# the GPUs are fake: the same flags, but the ranks find none
SITE = {
    "PARTITION": "test", "CPU_PARTITION": "cpu", "CONSTRAINT": "fast", "ENCODE_LIMIT": "2", "NETWORK_INTERFACE": "lo",
    "TRAIN_NODES": 2, "TRAIN_RANKS": 2, "TRAIN_GPUS": 2, "TRAIN_CPUS": 1, "TRAIN_MEM": 0, "TRAIN_TIME": "00:30:00",
    "ENCODE_PARTS": 2, "ENCODE_GPUS": 1, "ENCODE_CPUS": 1, "ENCODE_MEM": "4G", "ENCODE_TIME": "00:30:00",
    "ENCODE_ATTEMPTS": 3, "INFER_GPUS": 1, "INFER_CPUS": 2, "INFER_MEM": "4G", "INFER_TIME": "00:30:00",
    "CPU_CPUS": 1, "CPU_MEM": "4G", "CPU_TIME": "00:30:00", "VENV": f"'{sys.prefix}'",
}  # fmt: skip


class Cluster:
    """Two nodes of two ranks, and a spare node; jobs run in `work`."""

    def __init__(self, folder: Path) -> None:
        """Start the cluster; skip the test if it cannot be started."""
        # munged requires that all users can enter the folders above its socket; pytest's folders are private
        self.root, self.work = Path(tempfile.mkdtemp(prefix="slurm-test-")) / "cluster", folder / "work of mine"
        self.root.parent.chmod(0o755)
        self.work.mkdir()
        (folder / "site.env").write_text("".join(f"{name}={value}\n" for name, value in SITE.items()))
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_"))}
        self.env |= {"SLURM_TEST_ROOT": str(self.root), "SLURM_CONF": str(self.root / "slurm.conf")}
        self.env |= {"SLURM_TEST_NODES": "3"}
        self.env |= {"SITE": str(folder / "site.env"), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
        done = self.run_script("start_cluster.sh")
        if done.returncode == 77:
            pytest.skip(done.stdout.strip().splitlines()[-1])
        assert done.returncode == 0, done.stdout

    def run_script(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.call("bash", str(HERE / name), seconds=180)

    def call(self, *command: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command in the work folder; its output and errors are one text (a file: daemons keep pipes open)."""
        output = self.work.parent / "output.txt"
        with output.open("w") as file:
            done = subprocess.run(
                command,
                cwd=self.work,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=seconds,
            )
        return subprocess.CompletedProcess(command, done.returncode, output.read_text())

    def submit(self, *arguments: str) -> dict[str, str]:
        """Run `jobs/submit.sh` and return the job ids by step."""
        done = self.call("bash", str(ROOT / "jobs" / "submit.sh"), *arguments)
        assert done.returncode == 0, done.stdout
        return dict(re.findall(r"^(\w+) +job (\d+)$", done.stdout, re.MULTILINE))

    def job_info(self, job: str) -> list[dict[str, str]]:
        """The fields of a job, or of each task of an array."""
        output = self.call("scontrol", "show", "job", "-o", job).stdout
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in output.splitlines() if line.startswith("JobId=")]

    def wait(self, job: str, seconds: float = 400) -> dict[str, str]:
        """Wait until a job ends, and return its fields; of an array, those of a failed task if there is one."""
        living = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "STAGE_OUT")
        self.until(
            lambda: (tasks := self.job_info(job)) and not any(task["JobState"] in living for task in tasks),
            seconds,
            job,
        )
        return max(self.job_info(job), key=lambda task: task["JobState"] != "COMPLETED")

    def until(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """Wait until a condition is true and return its value; after `seconds`, fail with the ends of the logs."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds:.0f} s for {what}\n{self.call('squeue').stdout}\n{self.logs()}")
            time.sleep(0.3)
        return value

    def logs(self) -> str:
        """The ends of the jobs' logs."""
        files = sorted(self.work.rglob("slurm/*.log"), key=lambda file: file.stat().st_mtime)[-4:]
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def processes(self, *texts: str) -> list[int]:
        """The ids of Python processes whose command line or environment contains all of these texts."""
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                content = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                program = (folder / "exe").resolve().name
            except OSError:
                continue
            if program.startswith("python") and all(text.encode() in content for text in texts):
                pids.append(int(folder.name))
        return sorted(pids)

    def kill_node(self, node: str) -> None:
        """Kill all processes of a node, like a power failure."""
        parent = int((self.root / "run" / f"{node}.parent").read_text())
        child = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGKILL)
