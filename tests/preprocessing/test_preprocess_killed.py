"""After kills at any moment the finished dataset is the same, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.data.build_state import PLAN
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.corpora import pack
from tests.helpers.preprocess_runs import args, command, contents, start, start_forked, tones
from tests.helpers.warm_python import WarmPython

MODULE = "pipeline.preprocess"
HERE = ("encoder_workers=1", "decode_workers=0")
TRAIN_AND_VALID = ("data.valid=0.3", "data.test=0", "data.min_seconds=0.01")


def descendants(pid: int) -> set[int]:
    """The child processes of a process, and theirs."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    ours = {pid}
    while more := {child for child, parent in pairs if parent in ours} - ours:
        ours |= more
    return ours - {pid}


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | WarmPython) -> bool:
    """Wait until a condition holds or the process ends, however busy the machine; pytest's timeout is the limit."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


def printed(process: WarmPython) -> str:
    """What a process has printed, its lines joined."""
    return " ".join(process.output.read_text().split())


def killed_run(arguments: list[str], out: Path, draw: random.Random, work: float) -> None:
    """Start a run, and kill it at most `work` seconds after it started to encode."""
    process = start_forked(out.with_suffix(".killed.txt"), *arguments)
    before = (out / PLAN).stat().st_mtime_ns if (out / PLAN).exists() else 0
    shards = len([*out.glob("*.done.json")])
    wait_for(lambda: any(out.glob("*")) and (before > 0 or (out / PLAN).exists()), process)
    if draw.random() < 0.7:  # else in the middle of the start, or of the plan
        wait_for(lambda: len([*out.glob("*.done.json")]) > shards, process)
    time.sleep(draw.uniform(0, work))
    process.kill()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones(tmp_path_factory.mktemp("corpora") / "tones", 60, 1.0)


def finish(out: Path, arguments: list[str]) -> str:
    """Run to the end without an error; what was printed."""
    process = start_forked(out.with_suffix(".txt"), *arguments)
    assert process.wait() == 0, printed(process)
    return printed(process)


def build(corpus: Path, out: Path) -> Path:
    """Build the dataset by the command: a process that computed other things before may round differently."""
    finish(out, args("folder", corpus, out, *TRAIN_AND_VALID, *HERE))
    return out


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "whole"
    return build(corpus, out)


def kill_and_compare(corpus: Path, whole: Path, out: Path, kills: int, *overrides: str) -> None:
    """Kill run after run in one folder. A dataset that is finished nevertheless is compared and deleted."""
    arguments = args("folder", corpus, out, *TRAIN_AND_VALID, *overrides)
    draw = random.Random(kills)
    cut_short = 0
    for _ in range(kills):
        if (out / MANIFEST).exists():
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
        killed_run(arguments, out, draw, 0.5)
        cut_short += not (out / MANIFEST).exists()
    finish(out, arguments)
    assert contents(out) == contents(whole)
    assert cut_short > kills // 2, "too few of the kills came before the end to say anything"


def test_three_kills_leave_the_same_bytes(corpus: Path, whole: Path, tmp_path: Path) -> None:
    kill_and_compare(corpus, whole, tmp_path / "out", 3, "encoder_workers=1", "decode_workers=1")


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(corpus: Path, whole: Path, tmp_path: Path) -> None:
    kill_and_compare(corpus, whole, tmp_path / "out", 20, "encoder_workers=2", "decode_workers=1")


def test_killed_run_leaves_no_process(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = args("folder", corpus, out, *TRAIN_AND_VALID, "encoder_workers=2", "decode_workers=1")
    process = start_forked(tmp_path / "printed.txt", *arguments)
    assert wait_for(lambda: any(out.glob("*.done.json")), process)
    children = descendants(process.pid)
    assert len(children) >= 4, "two encoders and a reader each"
    process.kill()
    while any(map(alive, children)):  # pytest's timeout is the limit
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_leaves_no_files(nsynth_folder: Path, tmp_path: Path, workers: int) -> None:
    """SIGTERM to all processes, as Slurm sends it, while temporary files have the bytes of archives."""
    folder = nsynth_folder / "nsynth-train"
    files = {str(path.relative_to(nsynth_folder)): path for path in sorted(folder.rglob("*.*"))}
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "nsynth-train.jsonwav.tar.gz", files)
    left = tmp_path / "left"
    left.mkdir()
    arguments = args("nsynth", tmp_path / "in", tmp_path / "out", f"encoder_workers={workers}", "decode_workers=1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(left))
        process = start(MODULE, *arguments, start_new_session=True)
    assert wait_for(lambda: any(left.glob("preprocess-*/*/*")), process)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate()
    assert (process.returncode, error) == (143, "terminated: finished shards are kept; run the same command again\n")
    assert not [path for path in left.rglob("*") if path.is_file()] and not [*left.glob("preprocess-*")]
    assert not [*(tmp_path / "out").glob(".*")]


@pytest.mark.slow
def test_killed_encoder_is_reported_and_resumed(corpus: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = args("folder", corpus, out, *TRAIN_AND_VALID, "encoder_workers=2", "decode_workers=0")
    process = start_forked(tmp_path / "printed.txt", *arguments)
    assert wait_for(lambda: any(out.glob("*.done.json")), process)
    named = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(process.pid)}
    os.kill(next(pid for pid, command_line in named.items() if "spawn_main" in command_line), signal.SIGKILL)
    assert process.wait() == 1 and "exit code -9" in printed(process) and "out of memory" in printed(process)
    assert contents(build(corpus, out)) == contents(whole)


def test_parts_finish_in_any_order(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """Three independent machines: the last one writes the manifest. One is killed and restarted."""
    out = tmp_path / "out"
    part = [args("folder", corpus, out, *TRAIN_AND_VALID, *HERE, f"part={n}/3") for n in (1, 2, 3)]
    killed_run(part[0], out, random.Random(1), 0.02)
    assert "the last part to finish writes the manifest" in finish(out, part[2])
    assert not (out / MANIFEST).exists()
    merge = command("pipeline.shards", "merge", str(out))
    assert merge.returncode == 1 and "not finished" in merge.stderr
    both = [start_forked(tmp_path / f"{n}.txt", *part[n]) for n in (1, 0)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(out) == contents(whole)


def test_merge_by_command(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    (out / MANIFEST).unlink()
    assert command("pipeline.shards", "merge", str(out)).returncode == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_slurm_array_builds_all_parts(corpus: Path, whole: Path, tmp_path: Path, monkeypatch) -> None:
    for task in ("6", "5"):
        for name, value in {"ID": task, "MIN": "5", "COUNT": "2", "STEP": "1"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        build(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_partial_files_are_removed(corpus: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".train-000000.tar.1-abc.partial").write_bytes(b"half")
    build(corpus, out)
    assert contents(out) == contents(whole)
    assert [*verify(LocalStorage(out))] == [] and Manifest.load(out).num_samples("train") > 0


def test_killed_workers_cost_no_clip(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """As on a machine out of memory: other workers decode their clips, and the dataset is the same."""
    out = tmp_path / "out"
    arguments = args("folder", corpus, out, *TRAIN_AND_VALID, "encoder_workers=1", "decode_workers=2")
    process = start_forked(tmp_path / "printed.txt", *arguments)
    killed: set[int] = set()
    while process.poll() is None:
        time.sleep(0.05)
        if any(out.glob("*.done.json")) and len(killed) < 4:
            readers = [pid for pid in descendants(process.pid) - killed if alive(pid) and is_spawned(pid)]
            for pid in readers[:1]:
                with suppress(ProcessLookupError):  # the run is over
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                time.sleep(0.7)  # a clip whose second reader is killed at it, too, would be set aside
    assert process.wait() == 0 and killed, printed(process)
    assert contents(out) == contents(whole)


def is_spawned(pid: int) -> bool:
    """Whether a process is a decode worker, not Python's resource tracker."""
    try:
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return False
