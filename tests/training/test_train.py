"""Training by the commands that users type: real DeepSpeed ranks, real shards, real interruptions."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.models import model_stats
from pipeline.models.model_config import ModelConfig
from pipeline.train import main
from pipeline.training import checkpoint
from pipeline.training.run_lock import RunLock
from tests.helpers.ranks import TRAIN, Ranks, free_port, fresh_env, start_ranks
from tests.helpers.training_caches import write_cache
from tests.helpers.warm_python import run_python

SMALL = (
    "codec=encodec_embedded", "codec.codebooks=4", "model=tiny", "model.width=32", "model.layers=2", "tracking=none",
    "trainer.micro_batch=4", "trainer.log_every=1", "trainer.save_every=5", "trainer.val_every=10", "optim.lr=0.01",
    "optim.schedule.warmup=2", "audio_samples.clips=0",
)  # fmt: skip


def start(cache: Path, run: Path, *overrides: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Start `deepspeed --num_gpus N pipeline/train.py +exp=delay_gpt2 ...` in a new process group."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks)]
    command = [*launcher, "--master_port", str(free_port()), TRAIN, "+exp=delay_gpt2"]
    return subprocess.Popen(
        [*command, f"shards={cache}", f"run={run}", *SMALL, *overrides],
        env=fresh_env(run.parent / "extensions"),
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(cache: Path, run: Path, *overrides: str, ranks: int = 1) -> str:
    """Run the same command to its end, and return its output."""
    process = start(cache, run, *overrides, ranks=ranks)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def start_training(cache: Path | str, run: Path, *overrides: str, ranks: int = 2) -> Ranks:
    """Start training on ranks without the launcher, which would cost as much as a rank."""
    return start_ranks(
        run.parent, TRAIN, "+exp=delay_gpt2", f"shards={cache}", f"run={run}", *SMALL, *overrides, ranks=ranks
    )


def train_ranks(cache: Path | str, run: Path, *overrides: str, ranks: int = 2) -> str:
    """Train to the end without the launcher, and return the output."""
    return start_training(cache, run, *overrides, ranks=ranks).wait()


def rows(run: Path, name: str = "train/loss") -> dict[int, float]:
    """The values of a metric by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    return {row["step"]: row[name] for row in rows if name in row}


def kill_at(ranks: Ranks, run: Path, step: int, delay: float = 0) -> None:
    """Kill the ranks with SIGKILL as soon as a step is logged, or some seconds later."""
    while ranks.poll() is None:
        if (run / "metrics.jsonl").exists() and step in logged_steps(run):
            break
        time.sleep(0.02)
    time.sleep(delay)
    ranks.kill()


def pids(command: str) -> list[int]:
    """The processes whose command line matches a pattern."""
    return [int(n) for n in subprocess.run(["pgrep", "-f", command], capture_output=True, text=True).stdout.split()]


def kill_all(command: str) -> None:
    """Kill the processes whose command line matches a pattern."""
    for pid in pids(command):
        with suppress(ProcessLookupError):  # it has already ended
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def kill_remaining_ranks(tmp_path: Path) -> Iterator[None]:
    """No rank of a failed test keeps training."""
    yield
    kill_all(re.escape(str(tmp_path)) + "/run")


def logged_steps(run: Path) -> set[int]:
    return {int(n) for n in re.findall(r'"step": (\d+)', (run / "metrics.jsonl").read_text())}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "one length")


@pytest.fixture(scope="module")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twenty steps on two ranks with dropout, never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    out = train_ranks(cache, run, "trainer.steps=20", "model.dropout=0.1")
    assert "8 clips per step = 4 micro_batch x 1 gradient_accumulation_steps x 2 ranks" in out
    return run


def test_run_learns_and_writes_its_folder(unbroken: Path) -> None:
    losses = rows(unbroken)
    assert sorted(losses) == list(range(1, 21)) and losses[20] < losses[1] - 1
    assert set(rows(unbroken, "val/loss")) == {10, 20}
    assert {path.name for path in unbroken.iterdir()} >= {"config.yaml", "metrics.jsonl", "log.txt", "checkpoints"}
    assert (unbroken / "export" / "model.safetensors").is_file()
    assert [path.name for path in sorted((unbroken / "checkpoints").glob("step-*"))] == [
        "step-10",
        "step-15",
        "step-20",
    ]
    assert not any((unbroken.parent / "extensions").glob("**/*.so"))  # nothing is compiled on a CPU


def test_resume_matches_unbroken_run(cache: Path, unbroken: Path, tmp_path: Path) -> None:
    """After SIGKILL, by the same command, with dropout and dropped prompts: losses are equal to 6 decimals."""
    overrides, run = ("trainer.steps=20", "model.dropout=0.1"), tmp_path / "run"
    kill_at(start_training(cache, run, *overrides), run, 7)
    assert "resuming at step" in train_ranks(cache, run, *overrides)
    assert rows(run) == pytest.approx(rows(unbroken), abs=1e-6)
    assert rows(run, "val/loss") == pytest.approx(rows(unbroken, "val/loss"), abs=1e-6)


@pytest.mark.slow  # the launcher imports as much as two ranks
def test_launcher_trains_as_ranks_do(cache: Path, unbroken: Path, tmp_path: Path) -> None:
    """`deepspeed --num_gpus 2 pipeline/train.py` has the losses of two ranks that are started otherwise."""
    train(cache, tmp_path / "run", "trainer.steps=20", "model.dropout=0.1", ranks=2)
    assert rows(tmp_path / "run") == pytest.approx(rows(unbroken), abs=1e-6)


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(cache: Path, tmp_path: Path) -> None:
    """In a step, in a save, or right after it: losses are those of an uninterrupted run."""
    overrides, run, unbroken_run = ("trainer.steps=60", "model.dropout=0.1"), tmp_path / "run", tmp_path / "whole"
    train_ranks(cache, unbroken_run, *overrides)
    generator = random.Random(0)
    for step in sorted(generator.sample(range(2, 55), 5)):
        kill_at(start_training(cache, run, *overrides), run, step, generator.uniform(0, 0.3))
    train_ranks(cache, run, *overrides)
    assert rows(run) == pytest.approx(rows(unbroken_run), abs=1e-6)
    assert rows(run, "val/loss") == pytest.approx(rows(unbroken_run, "val/loss"), abs=1e-6)
    assert rows(run, "train/clips") == rows(unbroken_run, "train/clips")


@pytest.mark.slow
def test_resume_on_other_ranks_sees_every_clip_once(cache: Path, tmp_path: Path) -> None:
    """From two ranks to one and back: no clip is lost or repeated, and the losses agree."""
    run, overrides = tmp_path / "run", ("trainer.steps=20", "model.prompt_dropout=0")
    unbroken_run = tmp_path / "whole"
    train_ranks(cache, unbroken_run, *overrides)
    kill_at(start_training(cache, run, *overrides), run, 7)
    out = train_ranks(cache, run, *overrides[1:], "trainer.steps=10", "trainer.micro_batch=8", ranks=1)
    assert "for 1 ranks" in out and "resuming at step 5 of 10" in out
    out = train_ranks(cache, run, *overrides)
    assert "for 2 ranks" in out
    assert rows(run, "train/clips") == rows(unbroken_run, "train/clips")
    assert rows(run) == pytest.approx(rows(unbroken_run), abs=2e-3)


@pytest.mark.slow
def test_killed_launcher_makes_the_ranks_save_and_stop(cache: Path, tmp_path: Path) -> None:
    """Only the `deepspeed` command is killed; the ranks keep the lock of the folder until they end."""
    run, overrides = tmp_path / "run", ("trainer.steps=400", "trainer.save_every=0", "trainer.val_every=0")
    process = start(cache, run, *overrides)
    while not ((run / "metrics.jsonl").exists() and 3 in logged_steps(run)):
        assert process.poll() is None
        time.sleep(0.02)
    (rank,) = pids(rf"train\.py --local_rank=0.*run={run} ")
    with pytest.raises(InputError, match=rf"run={run}: process {rank} on .* is training in it"):
        RunLock(run).acquire()
    process.kill()
    out, _ = process.communicate()  # returns when the ranks, too, have closed their output
    stopped = max(rows(run))
    assert "stopped on request" in out and "Traceback" not in out and not pids(rf"train\.py .*run={run} ")
    assert (run / "checkpoints" / f"step-{stopped}" / "complete.json").is_file()
    out = train(cache, run, "trainer.steps=" + str(stopped + 3), *overrides[1:])
    assert f"resuming at step {stopped}" in out and max(rows(run)) == stopped + 3


def train_here(cache: Path, run: Path, *overrides: str) -> None:
    """Train on one rank in this process."""
    arguments = ["+exp=delay_gpt2", f"shards={cache}", f"run={run}", *SMALL, *overrides]
    assert main.task(arguments) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["flatten", "parallel", "valle"])
def test_every_pattern_trains(here: None, cache: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    train_here(cache, run, f"pattern={name}", "trainer.steps=12", "trainer.val_every=0")
    losses = rows(run)
    assert losses[12] < losses[1] - 0.5


@pytest.mark.slow
def test_compute_budget_gives_longer_patterns_fewer_steps(here: None, cache: Path, tmp_path: Path) -> None:
    steps = {}
    for name in ("delay", "flatten"):
        train_here(
            cache, tmp_path / name, f"pattern={name}", "trainer.compute_budget_pflop=1e-5", "trainer.val_every=0"
        )
        steps[name] = max(rows(tmp_path / name))
        config = ModelConfig(**checkpoint.read_metadata(checkpoint.list_checkpoints(tmp_path / name)[-1])["model"])
        assert steps[name] * 4 * model_stats.training_flops(config, 12) == pytest.approx(1e10, rel=0.1)
    assert steps["flatten"] < steps["delay"] / 1.5
    with pytest.raises(InputError, match=r"trainer\.compute_budget_pflop=-1"):
        train_here(cache, tmp_path / "none", "trainer.compute_budget_pflop=-1")


def test_accumulation_equals_one_large_batch(here: None, tmp_path: Path) -> None:
    """Losses agree, also for clips of different lengths, where micro-batches differ in their number of tokens."""
    cache = write_cache(tmp_path / "cache", lengths=(12, 3, 7))
    runs = {"big": ("8", "1"), "small": ("2", "4")}
    for name, (micro, accumulate) in runs.items():
        overrides = (
            f"trainer.micro_batch={micro}",
            f"trainer.gradient_accumulation_steps={accumulate}",
            "model.prompt_dropout=0",
        )
        train_here(cache, tmp_path / name, "trainer.steps=6", *overrides)
    assert rows(tmp_path / "big") == pytest.approx(rows(tmp_path / "small"), abs=1e-4)


def test_zero_stages_have_the_same_losses(here: None, cache: Path, tmp_path: Path) -> None:
    for stage in (0, 1, 2, 3):
        train_here(cache, tmp_path / str(stage), "trainer.steps=4", f"deepspeed=zero{stage}")
    losses = [rows(tmp_path / str(stage)) for stage in (0, 1, 2, 3)]
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == pytest.approx(losses[0], abs=1e-5)
    norms = rows(tmp_path / "0", "train/grad_norm")
    assert norms == pytest.approx(rows(tmp_path / "1", "train/grad_norm"), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shards=nowhere"], r"there is no dataset at nowhere.*python -m pipeline\.preprocess"),
        (["codec=encodec_24khz"], r"codec\.name is 'encodec_embedded', expected 'encodec_24khz'"),
        (["codec.codebooks=8"], r"codec\.codebooks=8: the shards at .* have 4"),
        (["data.train=training"], r"has no clips in data\.train=training.*train \(45 clips\)"),
        (["model.positions=8"], r"clips of 12 frames are 15 steps.*model\.positions=8"),
        (["model.width=30"], r"model\.width=30 is not a multiple of model\.heads=4"),
        (["resume=elsewhere"], r"resume=elsewhere has no complete checkpoint"),
    ],
)
def test_bad_input_is_refused_before_the_run_folder_exists(
    here: None, cache: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_here(cache, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_run_of_another_model_is_not_resumed(here: None, cache: Path, tmp_path: Path) -> None:
    train_here(cache, tmp_path / "run", "trainer.steps=2")
    with pytest.raises(InputError, match=r"layers was 2, is now 3.*another run=DIR"):
        train_here(cache, tmp_path / "run", "trainer.steps=2", "model.layers=3")
    with pytest.raises(InputError, match=r"contains a run at step-2"):
        train_here(cache, tmp_path / "run", "trainer.steps=2", "resume=never")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("zero0 fp32", "zero1 fp32", r"step-2 has .* ZeRO stage 0 in fp32.*ZeRO stage 1 in fp32.*deepspeed=zero0 "),
        ("zero2 fp32", "zero0 fp32", r"deepspeed=zero1 or zero2 and trainer.precision=fp32"),
        ("zero1 fp32", "zero3 fp32", r"ZeRO stage 3 in fp32 cannot read"),
        ("zero1 bf16", "zero1 fp32", r"stage 1 in bf16, which ZeRO stage 1 in fp32 .* trainer.precision=bf16"),
        ("zero1 fp32", "zero2_offload fp32", None),
    ],
)
def test_incompatible_optimizer_state_is_refused(
    here: None, cache: Path, tmp_path: Path, old: str, new: str, message: str | None
) -> None:
    def choice(name: str, steps: int) -> list[str]:
        zero, precision = name.split()
        return [f"deepspeed={zero}", f"trainer.precision={precision}", f"trainer.steps={steps}"]

    train_here(cache, tmp_path / "run", *choice(old, 2))
    if message is None:
        train_here(cache, tmp_path / "run", *choice(new, 3))
        assert sorted(rows(tmp_path / "run")) == [1, 2, 3]
    else:
        with pytest.raises(InputError, match=message):
            train_here(cache, tmp_path / "run", *choice(new, 3))


def test_incomplete_checkpoint_is_never_read(here: None, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(cache, run, "trainer.steps=10")
    (run / "checkpoints" / "step-10" / "complete.json").unlink()
    train_here(cache, run, "trainer.steps=11")
    assert sorted(rows(run)) == list(range(1, 12))
    names = {path.name for path in (run / "checkpoints").glob("step-*")}
    assert names == {"step-5", "step-10", "step-11"}


@pytest.mark.slow
def test_clips_with_a_non_finite_loss_are_logged(tmp_path: Path) -> None:
    """Their step is skipped on all ranks, and the rank that read them logs their keys."""
    cache, run = write_cache(tmp_path / "cache", broken=("train-3",)), tmp_path / "run"
    train_ranks(cache, run, "trainer.steps=24", "trainer.val_every=0")
    losses, skipped = rows(run), rows(run, "train/skipped")
    assert skipped[24] in (4, 5) and losses[24] < losses[1] - 1  # 45 clips an epoch, 8 a step
    bad = [json.loads(line) for file in run.glob("not-finite-rank-*.jsonl") for line in file.read_text().splitlines()]
    assert len(bad) == skipped[24] and all("train-3" in row["clips"] for row in bad)
    assert {row["rank"] for row in bad} == {0, 1} and all(len(row["clips"]) == 4 for row in bad)


def test_too_many_skipped_steps_end_the_run(here: None, tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path / "cache", broken=tuple(f"train-{i}" for i in range(1, 45))), tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"3 consecutive steps.*pipeline\.shards verify"):
        train_here(cache, run, "trainer.steps=24", "trainer.max_skipped_steps=3", "trainer.micro_batch=8")


def test_moving_average_is_resumed_and_exported(here: None, cache: Path, tmp_path: Path) -> None:
    """After a resume it is that of an unbroken run, and differs from the weights of the last step."""
    exported = {}
    for name, stops in (("unbroken", ["12"]), ("resumed", ["5", "12"]), ("none", ["12"])):
        for stop in stops:
            ema = "0" if name == "none" else "0.9"
            train_here(cache, tmp_path / name, f"trainer.steps={stop}", f"trainer.ema={ema}")
        exported[name] = load_file(tmp_path / name / "export" / "model.safetensors")["head.weight"]
    assert torch.allclose(exported["unbroken"], exported["resumed"], atol=1e-6)
    assert not torch.allclose(exported["unbroken"], exported["none"], atol=1e-4)


def test_audio_samples_are_written_at_each_validation(here: None, cache: Path, tmp_path: Path) -> None:
    """Generated from validation prompts at every temperature; the losses do not change."""
    overrides = ("trainer.steps=4", "trainer.val_every=2", "model.dropout=0.1")
    train_here(cache, tmp_path / "without", *overrides)
    train_here(
        cache,
        tmp_path / "run",
        *overrides,
        "audio_samples.clips=2",
        "audio_samples.seconds=0.1",
        "audio_samples.temperatures=[0.5,1]",
    )
    assert rows(tmp_path / "run") == rows(tmp_path / "without")
    for step in (2, 4):
        files = sorted(path.name for path in (tmp_path / "run" / "audio_samples" / f"step-{step}").glob("*.wav"))
        assert len(files) == 2 * 3 and sum("temperature-0.5" in name for name in files) == 2, files


@pytest.mark.parametrize("override", ["trainer.activation_checkpointing=true", "trainer.label_smoothing=0.1"])
def test_training_only_settings_do_not_change_validation(
    here: None, cache: Path, tmp_path: Path, override: str
) -> None:
    overrides = ("trainer.steps=1", "optim.lr=0", "model.prompt_dropout=0")
    train_here(cache, tmp_path / "plain", *overrides)
    train_here(cache, tmp_path / "other", *overrides, override)
    assert rows(tmp_path / "plain", "val/loss") == rows(tmp_path / "other", "val/loss")
    assert (rows(tmp_path / "plain") == rows(tmp_path / "other")) == ("smoothing" not in override)


def test_retention_keeps_newest_best_and_every_mth(here: None, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = (
        "trainer.steps=12",
        "trainer.save_every=1",
        "trainer.val_every=1",
        "trainer.keep=2",
        "trainer.keep_every=5",
    )
    train_here(cache, run, *overrides, "optim.lr=0.5")  # too high: the first steps are the best
    losses = rows(run, "val/loss")
    best = min(losses, key=lambda step: losses[step])
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")}
    assert kept == {5, 10, 11, 12, best}


@pytest.mark.slow
def test_watchdog_prints_stacks_and_ends_the_job(cache: Path, tmp_path: Path) -> None:
    """One of two ranks is stopped, as if its machine had died; the other does not wait forever."""
    run = tmp_path / "run"
    overrides = ("trainer.steps=100000", "trainer.watchdog_seconds=10", "trainer.save_every=0", "trainer.val_every=0")
    process = start(cache, run, *overrides, ranks=2)
    while not ((run / "metrics.jsonl").exists() and 3 in logged_steps(run)):
        assert process.poll() is None
        time.sleep(0.02)
    waiting, stopped = (rf"train\.py --local_rank={rank}.*run={run} " for rank in (0, 1))
    os.kill(*pids(stopped), signal.SIGSTOP)
    while pids(waiting):  # until it has ended
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(*pids(stopped), signal.SIGKILL)  # the launcher would wait 30 s for a stopped process
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "Timeout (0:00:10)!" in output
    assert re.search(r'training/trainer\.py", line \d+ in train\n', output), output


def test_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    message = r"error: there is no dataset at nowhere"
    process = run_python(
        [TRAIN, "--local_rank=0", "+exp=delay_gpt2", "shards=nowhere"], env=fresh_env(tmp_path), cwd=tmp_path
    )
    assert process.returncode == 2, process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and re.match(message, errors[0]) and "Traceback" not in process.stderr, process.stderr
    assert not (tmp_path / "runs").exists()
