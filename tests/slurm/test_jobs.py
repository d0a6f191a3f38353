"""The jobs on a real Slurm cluster, two nodes of two CPU ranks: from audio files to generated audio, with failures."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dashboards import shown_metrics
from tests.helpers.preprocess_runs import tones
from tests.helpers.slurm_cluster import ROOT, Cluster
from tests.helpers.wandb_server import Server, sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

STEPS = 200
SMALL = ("codec=encodec_embedded", "codec.codebooks=2")
PREPROCESS = ("data=folder", "embedder=encodecmae_tiny", "samples_per_shard=6", "data.valid=0.3", "data.test=0")
MODEL = ("model=tiny", "model.width=64", "model.layers=2", "model.heads=2", "optim.betas=[0.9,0.99]")
TRAINER = (f"trainer.steps={STEPS}", "trainer.micro_batch=4", "trainer.log_every=5", "trainer.save_every=40")
QUIET = ("tracking.mode=offline", "tracking.code=false", "trainer.val_every=100", "optim.schedule.warmup=10")
TRAIN = ("--train", *MODEL, *TRAINER, *QUIET)
EXPERIMENT = "delay_gpt2"


def losses(run: Path) -> dict[int, float]:
    """The logged training loss of each step; no step is logged twice."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pairs = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def last_step(run: Path) -> int:
    """The last logged step."""
    rows = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return int(json.loads(rows[-1])["step"]) if rows else 0


def submit_training(cluster: Cluster, run: str) -> str:
    """Submit the training of the chain again with another run folder, and return the job id."""
    shards = ("--shards", "shards of tones", "--from", "train", "--run", run)
    jobs = cluster.submit(EXPERIMENT, *SMALL, *shards, *TRAIN)
    cluster.call("scancel", jobs["generate"], jobs["evaluate"])
    return jobs["train"]


@pytest.fixture(scope="module")
def complete_run(cluster: Cluster) -> Path:
    """The run folder of a complete chain of jobs, in which one encoder is killed and requeued."""
    tones(cluster.work.parent / "sounds", 48, 0.6)
    data_root = f"data.root='{cluster.work.parent / 'sounds'}'"
    jobs = cluster.submit(
        EXPERIMENT, *SMALL, "--shards", "shards of tones", "--run", "runs/complete", "--preprocess", *PREPROCESS,
        data_root, "data.min_seconds=0.01", *TRAIN, "--generate", "n=2", "seconds=0.5", "sampling.top_k=50",
        "--evaluate", "n=4", "temperatures=[0.7,1.0]", "resamples=10", "pitch=false",
    )  # fmt: skip
    assert list(jobs) == ["preprocess", "merge", "train", "generate", "evaluate"]
    second = ("pipeline.preprocess", "SLURM_ARRAY_TASK_ID=1", f"SLURM_ARRAY_JOB_ID={jobs['preprocess']}")
    encoder = cluster.until(lambda: cluster.processes(*second), 120, "the second encoder")[0]
    os.kill(encoder, signal.SIGKILL)
    for step, job in jobs.items():
        ended = cluster.wait(job)
        assert ended["JobState"] == "COMPLETED", f"{step}: {ended}\n{cluster.logs()}"
    starts = sorted(task.get("Restarts") for task in cluster.job_info(jobs["preprocess"]))
    assert starts == ["0", "1"]
    return cluster.work / "runs/complete"


def test_chain_of_jobs_generates_and_evaluates(complete_run: Path, cluster: Cluster) -> None:
    assert [file.name for file in sorted((complete_run / "generated").glob("*.wav"))] == ["clip-1.wav", "clip-2.wav"]
    assert [*(complete_run / "evaluation").rglob("*.wav")] and (complete_run / "evaluation" / "evaluate.json").is_file()
    assert max(losses(complete_run)) == STEPS and (complete_run / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_dataset_of_parts_equals_one_encoded_alone(complete_run: Path, cluster: Cluster, tmp_path: Path) -> None:
    overrides = [*SMALL, *PREPROCESS, f"data.root='{cluster.work.parent / 'sounds'}'", "data.min_seconds=0.01"]
    command = [
        sys.executable,
        "-m",
        "pipeline.preprocess",
        *overrides,
        f"out='{tmp_path / 'alone'}'",
        "encoder_workers=1",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=env, cwd=cluster.work, capture_output=True, timeout=120)
    alone = {file.name: file.read_bytes() for file in (tmp_path / "alone").iterdir()}
    assert {file.name: file.read_bytes() for file in (cluster.work / "shards of tones").iterdir()} == alone


def test_preempted_training_matches_unbroken_run(complete_run: Path, cluster: Cluster) -> None:
    """USR1, which Slurm sends before the time limit: training saves and resumes in the same run folder and W&B run."""
    run = cluster.work / "runs" / "preempted"
    job = submit_training(cluster, str(run))
    cluster.until(lambda: last_step(run) >= 60, 120, "step 60")
    assert cluster.call("scancel", "--signal=USR1", job).returncode == 0
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    assert losses(run) == losses(complete_run)
    log = next((run / "slurm").glob("train-*.log")).read_text()
    assert "stopped on request: requeued" in log and "resuming at step" in log
    server = Server()
    assert sync(server, run).returncode == 0 and len([*run.glob("wandb/offline-run-*")]) == 2
    rows = server.rows((run / "wandb_id").read_text().strip())
    steps = [row["trainer/step"] for row in rows]
    assert steps == sorted(steps)
    assert {row["trainer/step"]: row["train/loss"] for row in rows if "train/loss" in row} == losses(run)
    if importlib.util.find_spec("wandb_workspaces"):
        assert shown_metrics(2) <= {name for row in rows for name in row}, (
            "the log of W&B has all metrics of the dashboard"
        )
    assert not [*cluster.work.glob(".train-*")]


@pytest.mark.slow
def test_training_resumes_after_a_node_failure(complete_run: Path, cluster: Cluster) -> None:
    run = cluster.work / "runs" / "node died"
    if (cluster.root / "mode").read_text().strip() != "ns":
        pytest.skip("the nodes share one process namespace, so no node can be killed")
    job = submit_training(cluster, str(run))
    cluster.until(lambda: last_step(run) >= 60, 120, "step 60")
    cluster.kill_node("node2")
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["NodeList"]) == ("COMPLETED", "1", "node[1,3]"), cluster.logs()
    assert losses(run) == losses(complete_run)


def test_dead_rank_fails_the_job_and_cancels_the_next(complete_run: Path, cluster: Cluster) -> None:
    run = cluster.work / "runs" / "rank died"
    shards = ("--shards", "shards of tones", "--from", "train", "--run", str(run))
    jobs = cluster.submit(EXPERIMENT, *SMALL, *shards, *TRAIN)
    cluster.until(lambda: last_step(run) >= 10, 120, "step 10")
    ranks = cluster.processes("pipeline/train.py", "RANK=3", f"SLURM_JOB_ID={jobs['train']}")
    os.kill(ranks[0], signal.SIGKILL)
    ended = cluster.wait(jobs["train"])
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "137:0", "0"), cluster.logs()
    for step in ("generate", "evaluate"):
        assert cluster.wait(jobs[step])["JobState"] == "CANCELLED"


def test_cancelled_training_saves_and_is_not_requeued(complete_run: Path, cluster: Cluster) -> None:
    run = cluster.work / "runs" / "cancelled"
    job = submit_training(cluster, str(run))
    cluster.until(lambda: last_step(run) >= 10, 120, "step 10")
    assert cluster.call("scancel", job).returncode == 0
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), cluster.logs()
    steps = [int(file.parent.name.removeprefix("step-")) for file in run.glob("checkpoints/*/complete.json")]
    assert steps and max(steps) < STEPS, "saved at the step at which it was cancelled"


def test_unknown_experiment_and_step_are_refused(cluster: Cluster) -> None:
    for arguments, message in (
        (("nothing",), "no conf/exp/nothing.yaml"),
        ((EXPERIMENT, "--from", "here"), "--from here"),
    ):
        done = cluster.call("bash", str(ROOT / "jobs" / "submit.sh"), *arguments)
        assert done.returncode == 2 and message in done.stdout


def test_refused_input_is_not_retried(cluster: Cluster) -> None:
    arguments = (
        "--array=0",
        "--partition=test",
        str(ROOT / "jobs" / "preprocess.sbatch"),
        "data=folder",
        "data.root=nowhere",
    )
    cluster.env["REPO"] = str(ROOT)
    job = cluster.call("sbatch", "--parsable", *arguments).stdout.strip()
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")


@pytest.mark.slow
def test_sweep_is_an_array_of_jobs(complete_run: Path, cluster: Cluster) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    launcher = [
        f"hydra.launcher.{setting}" for setting in ("partition=test", "cpus_per_task=1", "mem_gb=2", "gpus_per_node=1")
    ]
    small = [*SMALL, *MODEL, "trainer.steps=2", "trainer.log_every=1", "trainer.micro_batch=2", "tracking=none"]
    sweep = ["shards='shards of tones'", "optim.lr=1e-4,3e-4", "run=runs/lr-${optim.lr}"]
    command = ("-m", "pipeline.train", "-m", "hydra/launcher=slurm", *launcher, *small, *sweep)
    cluster.env["PYTHONPATH"] = str(ROOT)
    done = cluster.call(sys.executable, *command, seconds=180)
    assert done.returncode == 0, done.stdout
    runs = [cluster.work / "runs" / f"lr-{lr}" for lr in ("0.0001", "0.0003")]
    cluster.until(lambda: all((run / "export" / "config.json").exists() for run in runs), 60, "both runs")
    assert all(max(losses(run)) == 2 for run in runs)
    assert len([*(cluster.work / "sweep").glob("[0-9]*_[0-9]*")]) == 2, "two tasks of one array"
