"""docs/your-own-sounds.md: the whole evening on 60 real recordings, smaller than in the document."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipeline.common.metrics_file import read_metrics
from pipeline.shards import positional_to_overrides
from tests.helpers.documents import ROOT, commands_of
from tests.helpers.ranks import single_rank
from tests.helpers.real_recordings import COUNT, NoRecordings, download_recordings
from tests.helpers.trained_run import run_command

COMMANDS = [
    shlex.split(line) for line in commands_of(ROOT / "docs" / "your-own-sounds.md") if line.startswith("python -m ")
]
SMALL = {  # settings that replace those of the document
    "train": ["trainer.steps=60", "trainer.val_every=20", "trainer.save_every=0", "trainer.micro_batch=8",
              "optim.schedule.warmup=5", "audio_samples.clips=0", "tracking=none"],
    "compare": ["n=8", "resamples=20", "benchmark_batch=2"],
    "learning_curve": ["n=4", "resamples=20", "train={trainer.steps: 10, trainer.micro_batch: 4}"],
}  # fmt: skip


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings, and a small model of notes as the base, in which all commands were run."""
    root = tmp_path_factory.mktemp("evening")
    try:
        download_recordings(root / "sounds", root / "package")
    except NoRecordings as reason:
        pytest.skip(str(reason))
    before = _contents(root / "sounds")
    assert len(before) == COUNT
    with single_rank(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        models = ["codec=encodec_embedded", "embedder=encodecmae_tiny"]
        notes = [
            "data=notes",
            "data.root=notes",
            "data.clips=600",
            "data.seconds=1.5",
            "data.test=0",
            "out=quickstart/shards",
        ]
        assert run_command("preprocess", *notes, *models) == 0
        assert run_command("train", "+exp=quickstart", *SMALL["train"], "trainer.steps=150") == 0
        for _, _, module, *settings in COMMANDS:
            command = module.removeprefix("pipeline.")
            names = {setting.partition("=")[0] for setting in SMALL.get(command, [])}
            kept = [setting for setting in settings if setting.partition("=")[0] not in names]
            kept = positional_to_overrides(kept) if command == "shards" else kept
            assert run_command(command, *kept, *SMALL.get(command, [])) in (0, None), module
    assert _contents(root / "sounds") == before, "the recordings were changed"
    return root


def _contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def best_loss(run: Path) -> float:
    """The lowest validation loss of a training."""
    return min(row["val/loss"] for row in read_metrics(run) if "val/loss" in row)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fine_tuned_models_beat_those_from_scratch(evening: Path) -> None:
    """On the same held-out recordings, at the same number of steps."""
    scratch, finetuned, lora = (best_loss(evening / "runs" / name) for name in ("scratch", "finetuned", "lora"))
    assert finetuned < scratch and lora < scratch
    rows = json.loads((evening / "compare" / "compare.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["quickstart/run", "runs/scratch", "runs/finetuned", "runs/lora"]


@pytest.mark.slow
def test_labels_and_preparation_are_in_the_dataset(evening: Path) -> None:
    manifest = json.loads((evening / "shards" / "sounds" / "manifest.json").read_text())
    assert manifest["splits"]["valid"]["samples"] >= 8
    assert (evening / "learning_curve" / "learning_curve.html").is_file()
