"""Damaged checkpoints and exports are skipped or refused, never used; and errors of a full disk."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline import export
from pipeline.common.errors import InputError
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.weights import save_tensors
from pipeline.train import main
from pipeline.training import checkpoint
from pipeline.training.async_checkpoint import AsyncCheckpointEngine
from pipeline.training.distributed import World
from pipeline.training.ema import Ema
from tests.helpers.models import tiny
from tests.helpers.training_caches import write_cache
from tests.training.test_train import SMALL, rows

ALONE = World(0, 1, torch.device("cpu"))
WEIGHTS = "mp_rank_00_model_states.pt"
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "cache")


def train(cache: Path, run: Path, *overrides: str) -> None:
    """`python -m pipeline.train` in this process."""
    arguments = ["+exp=delay_gpt2", f"shards={cache}", f"run={run}", *SMALL, "trainer.val_every=0", *overrides]
    assert main.task(arguments) == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine steps with three checkpoints; tests must not change it."""
    handlers = logging.getLogger().handlers[:]
    run = tmp_path_factory.mktemp("runs") / "run"
    train(cache, run, "trainer.steps=9", "trainer.save_every=3", "trainer.keep=3", "trainer.ema=0.9")
    logging.getLogger().handlers[:] = handlers
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(file: Path, position: float = 0.5) -> None:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    data[int(position * len(data))] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    """Truncate a file."""
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one bit of the weights": (WEIGHTS, flip),
    "one bit of the moments": (OPTIMIZER, flip),
    "one bit of the mean": ("ema.safetensors", flip),
    "truncated": (OPTIMIZER, truncate),
    "a rank's file is missing": (OPTIMIZER, Path.unlink),
    "one digit of complete.json": (
        "complete.json",
        lambda file: file.write_text(file.read_text().replace('"place": 3', '"place": 7')),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_skipped_or_refused(run: Path, name: str) -> None:
    """resume=auto uses the one before and logs one line; resume=PATH and export refuse it."""
    file, damage = DAMAGES[name]
    bad = run / "checkpoints" / "step-9"
    damage(bad / file)
    source, skipped = checkpoint.resolve_resume(run, "auto", ALONE)
    assert source is not None and source.path == run / "checkpoints" / "step-6"
    assert len(skipped) == 1 and f"{bad} is damaged and skipped" in skipped[0] and file in skipped[0]
    assert len(checkpoint.damage(bad)) == 1
    with pytest.raises(InputError, match=rf"step-9 is damaged \(.*{file}.*give an earlier checkpoint, or resume=auto"):
        checkpoint.resolve_resume(run, str(bad), ALONE)
    with pytest.raises(InputError, match=rf"step-9.*damaged.*{file}|{file} is damaged"):
        export.main.task([f"run='{run}'"])


def test_training_resumes_from_the_checkpoint_before(here: None, cache: Path, trained: Path, run: Path) -> None:
    """The losses are those of the undamaged run, and the log has a line."""
    flip(run / "checkpoints" / "step-9" / WEIGHTS)
    before = {file: file.read_bytes() for file in (run / "checkpoints" / "step-6").iterdir()}
    overrides = ("trainer.save_every=4", "trainer.keep=2", "trainer.ema=0.9")
    train(cache, run, "trainer.steps=8", *overrides)
    text = (run / "log.txt").read_text()
    assert text.count("is damaged and skipped") == 1 and "resuming at step 6 of 8" in text
    assert rows(run) == pytest.approx({step: loss for step, loss in rows(trained).items() if step <= 8}, abs=1e-6)
    assert {file: file.read_bytes() for file in before} == before  # the newest intact one is kept
    assert (run / "checkpoints" / "latest").read_text() == "step-8"
    assert CodecGPT.from_pretrained(run / "export").config.layers == 2


def test_no_intact_checkpoint_is_an_error(run: Path) -> None:
    """Training does not start from scratch in a folder whose checkpoints may be restored."""
    for folder in checkpoint.list_checkpoints(run):
        flip(folder / WEIGHTS)
    with pytest.raises(InputError, match=r"step-9 is damaged.*no intact checkpoint is left"):
        checkpoint.resolve_resume(run, "auto", ALONE)


def test_checkpoints_without_checksums_are_read(run: Path) -> None:
    """Older versions wrote none."""
    import json

    folder = run / "checkpoints" / "step-9"
    state = checkpoint.read_metadata(folder)
    del state["files"]
    (folder / checkpoint.COMPLETE).write_text(json.dumps(state))
    assert checkpoint.resolve_resume(run, "auto", ALONE) == (checkpoint.Checkpoint(folder, state), [])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_damaged_export_is_refused(run: Path, file: str) -> None:
    path = run / "export" / file
    if file == "config.json":
        path.write_text(path.read_text().replace('"heads": 4', '"heads": 2'))
    else:
        flip(path)
    with pytest.raises(InputError, match=rf"{file} has changed since it was written.*python -m pipeline\.export"):
        CodecGPT.from_pretrained(run / "export")


def test_resume_of_another_run_needs_more_steps(here: None, cache: Path, trained: Path, tmp_path: Path) -> None:
    """resume=OLD run=NEW is refused if NEW would make no step; otherwise only NEW is written to."""
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    with pytest.raises(InputError, match=r"trainer\.steps=9: .*step-9 is already at step 9; set more steps"):
        train(cache, tmp_path / "run", f"resume={trained}", "trainer.steps=9", "trainer.ema=0.9")
    assert not (tmp_path / "run").exists()
    train(cache, tmp_path / "run", f"resume={trained}", "trainer.steps=10", "trainer.ema=0.9")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run")] == ["step-10"]
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def test_files_have_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    Ema(tiny(), 0.9).save(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "ema.safetensors"), umask)


@pytest.mark.parametrize("background", [True, False])
def test_full_disk_raises_an_oserror(background: bool) -> None:
    """It arguments the file and the reason, unlike the error of PyTorch's C++ code."""
    writer = AsyncCheckpointEngine(background)
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'") as caught:
        writer.save({"weight": torch.zeros(100_000)}, "/dev/full")
        writer.wait()
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def small_files() -> Iterator[int]:
    """A limit of the file size in bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_ends_export_with_one_line(
    run: Path, small_files: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And existing files stay."""
    before = (run / "export" / "model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", ["pipeline.export", f"run='{run}'"])
    with pytest.raises(SystemExit) as exit_info:
        export.main()
    stderr = capsys.readouterr().err.strip()
    assert exit_info.value.code == 1 and stderr.startswith(f"error: {run}/export/model.safetensors: File too large")
    assert "\n" not in stderr and (run / "export" / "model.safetensors").read_bytes() == before
    assert not [*(run / "export").glob(".*")]
    with pytest.raises(OSError, match="File too large"):
        save_tensors({"weight": torch.zeros(small_files)}, run / "weights.safetensors")
