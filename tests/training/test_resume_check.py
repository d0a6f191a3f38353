"""Settings that change a training are refused or explicitly accepted on resume, never ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.common.errors import InputError
from pipeline.common.files import with_checksum
from pipeline.training import checkpoint
from pipeline.training.resume_check import changed_settings, describe_stretch
from tests.helpers.training_caches import write_cache
from tests.training.test_optimizer import schedule
from tests.training.test_train import rows, train_here

pytestmark = pytest.mark.usefixtures("here")
OVERRIDES = ("trainer.steps=2", "trainer.val_every=0", "trainer.preflight=false")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture
def run(cache: Path, tmp_path: Path, finished: list[Path]) -> Path:
    """A copy of a finished run of two steps."""
    if not finished:
        folder = tmp_path / "finished"
        train_here(cache, folder, *OVERRIDES)
        finished.append(folder)
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def finished() -> list[Path]:
    return []


def recorded_settings(run: Path) -> dict[str, object]:
    """The settings that the newest checkpoint records."""
    settings = checkpoint.read_metadata(checkpoint.list_checkpoints(run)[-1])["settings"]
    assert isinstance(settings, dict)
    return settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=3e-4"], r"run=\S+/run was .*optim\.lr was 0\.01, is now 0\.0003.*resume=\S+/run to resume"),
        (["seed=1", "data.shuffle_shards=8"], r"seed was 0, is now 1; data\.shuffle_shards was 256, is now 8"),
        (["optim.schedule.name=cosine"], r"optim\.schedule\.name was 'constant', is now 'cosine'"),
        (
            ["trainer.micro_batch=8"],
            r"clips per step \(micro_batch x gradient_accumulation_steps x ranks\) was 4, is now 8",
        ),
        (["model.dropout=0.1"], r"model\.dropout was 0\.0, is now 0\.1"),
        (["data.seconds=0.1"], r"data\.seconds was None, is now 0\.1"),
        (["trainer.steps=1"], r"trainer\.steps=1: \S+step-2 is already at step 2; set 2 or more"),
    ],
)
def test_changed_settings_are_refused_and_named(cache: Path, run: Path, overrides: list[str], message: str) -> None:
    """The folder of the run stays unchanged, so that config.yaml has the settings of its checkpoints."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        train_here(cache, run, *OVERRIDES, *overrides)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_of_the_run_by_name_accepts_changes(cache: Path, run: Path) -> None:
    """Changes are logged, recorded in the next checkpoint, and compared by `resume=auto` from then on."""
    changed = ("optim.lr=3e-4", "trainer.steps=3")
    train_here(cache, run, *OVERRIDES, *changed, f"resume={run}")
    assert rows(run, "train/lr")[3] == 3e-4 and recorded_settings(run)["optim.lr"] == 3e-4
    assert "note: resumed with a changed setting: optim.lr was 0.01, is now 0.0003" in (run / "log.txt").read_text()
    train_here(cache, run, *OVERRIDES, *changed)
    with pytest.raises(InputError, match=r"optim\.lr was 0\.0003, is now 0\.01"):
        train_here(cache, run, *OVERRIDES, "trainer.steps=3")


def test_settings_without_effect_on_training_may_change(cache: Path, run: Path, tmp_path: Path) -> None:
    """More steps, other intervals, the same clips per step in micro-batches, and the same shards in another folder."""
    shutil.copytree(cache, tmp_path / "moved")
    overrides = ("trainer.steps=4", "trainer.log_every=2", "trainer.save_every=1", "trainer.keep=9")
    train_here(
        tmp_path / "moved",
        run,
        *OVERRIDES,
        *overrides,
        "trainer.micro_batch=2",
        "trainer.gradient_accumulation_steps=2",
    )
    assert max(rows(run)) == 4


def test_other_shard_contents_are_refused(run: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", clips=64)
    message = r"shards was 'contents [0-9a-f]{12}', is now 'contents [0-9a-f]{12}'; data\.valid was 'contents"
    with pytest.raises(InputError, match=message):
        train_here(other, run, *OVERRIDES)


def test_ranks_may_change_at_equal_clips_per_step_or_rank() -> None:
    """Elastic training keeps one of the two; otherwise the batch is another."""
    old = {"ranks": 4, "clips a rank and step": 8}
    for ranks, clips in ((4, 8), (2, 16), (8, 4), (2, 8), (1, 8)):
        assert not changed_settings(old, {"ranks": ranks, "clips a rank and step": clips})
    (change,) = changed_settings(old, {"ranks": 2, "clips a rank and step": 4})
    assert change == "clips per step (micro_batch x gradient_accumulation_steps x ranks) was 32, is now 8"


def test_optimizer_of_older_versions_is_adamw() -> None:
    """They had one optimizer, and did not record its name."""
    assert not changed_settings({"optim.lr": 0.1}, {"optim.lr": 0.1, "optim.name": "adamw"})
    assert changed_settings({}, {"optim.name": "lion"}) == ["optim.name was 'adamw', is now 'lion'"]


def test_run_of_an_older_version_resumes(cache: Path, run: Path) -> None:
    """Its checkpoint and its config.yaml do not name the optimizer."""
    newest = checkpoint.list_checkpoints(run)[-1]
    metadata = checkpoint.read_metadata(newest)
    del metadata["settings"]["optim.name"]
    (newest / checkpoint.COMPLETE).write_text(json.dumps(with_checksum(metadata)))
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["optim"]["name"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train_here(cache, run, *OVERRIDES, "trainer.steps=3")
    assert sorted(rows(run)) == [1, 2, 3] and "changed setting" not in (run / "log.txt").read_text()
    assert recorded_settings(run)["optim.name"] == "adamw"


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_longer_schedule_is_reported(name: str) -> None:
    """More steps are always accepted; if the learning rate jumps, both rates are logged."""
    lines = describe_stretch(schedule(name), 2, 2, 4)
    if name == "constant":
        assert not lines
    else:
        (line,) = lines
        assert line.startswith("trainer.steps=4, 2 before: the cosine schedule is stretched, and at step 2")
        assert line.endswith("is 0.5 of its peak instead of 0")


def test_checkpoint_without_settings_is_resumed_with_a_note(cache: Path, run: Path) -> None:
    file = checkpoint.list_checkpoints(run)[-1] / checkpoint.COMPLETE
    state = json.loads(file.read_text())
    del state["settings"], state["sha256"]  # as it was written by an older version
    file.write_text(json.dumps(state))
    train_here(cache, run, *OVERRIDES, "trainer.steps=3", "optim.lr=1e-3")
    assert "records no settings, so none are compared" in (run / "log.txt").read_text()
