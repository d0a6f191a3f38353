"""Labels as conditions in training: they are learned, resumed, fine-tuned, and refused before any work."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.models.change_conditions import change_conditions
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import load_merged
from pipeline.models.model_config import default_values
from pipeline.training import checkpoint
from pipeline.training.resume_check import check_model
from tests.helpers.http_server import Web
from tests.helpers.models import TINY, tiny
from tests.helpers.ranks import single_rank
from tests.helpers.training_caches import LABELS, write_cache
from tests.models.test_conditions import conditions
from tests.training.test_train import rows, train_here, train_ranks

ALL = "conditions=[prompt,pitch,{instrument_family: category},mood]"
QUIET = ("trainer.val_every=0", "trainer.preflight=false")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips whose labels say which of eight melodies they are."""
    return write_cache(tmp_path_factory.mktemp("caches") / "labeled", labels=("pitch", "instrument_family", "mood"))


@pytest.fixture(scope="module")
def labeled(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps on one label alone, without prompts."""
    run = tmp_path_factory.mktemp("runs") / "labeled"
    with single_rank():
        train_here(cache, run, "conditions=[pitch]", "trainer.steps=60", "trainer.val_every=60")
    return run


def test_a_label_alone_says_what_to_generate(cache: Path, labeled: Path) -> None:
    """The codes of a melody are much less likely under the label of another one."""
    model, dataset = CodecGPT.from_pretrained(labeled / "export"), ShardedDataset(cache, "valid")
    dataset.labels = ("pitch",)
    (batch,) = iter_once(dataset, 15)
    losses = []
    for shift in (0, 1):
        pitches = [LABELS["pitch"][(i + shift) % 8] for i in range(15)]
        values = model.condition_values(batch.prompts, {"pitch": pitches})
        losses.append(float(model(batch.codes, batch.frames, values)[0].sum().detach()))
    assert [pitch for pitch in batch.labels["pitch"] if pitch] == [LABELS["pitch"][i % 8] for i in range(1, 15)]
    assert losses[0] < 0.7 * losses[1]
    assert [each.name for each in model.config.condition_settings] == ["pitch"] and not model.config.has_prompt
    assert not any("prompt" in name for name in model.state_dict())


def test_resume_with_labels_matches_unbroken_run(cache: Path, tmp_path: Path) -> None:
    """With every kind of condition, each dropped on its own: the same losses to the last bit."""
    overrides = (ALL, "condition_dropout={prompt: 0.5, mood: 0.2}", "model.prompt_dropout=0.2", *QUIET)
    with single_rank():
        train_here(cache, tmp_path / "unbroken", *overrides, "trainer.steps=10")
        train_here(cache, tmp_path / "resumed", *overrides, "trainer.steps=5")
        train_here(cache, tmp_path / "resumed", *overrides, "trainer.steps=10")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "unbroken")
    config = json.loads((tmp_path / "unbroken" / "export" / "config.json").read_text())["conditions"]
    assert [(each["kind"], each["name"], each["dropout"]) for each in config] == [
        ("prompt", "prompt", 0.5), ("number", "pitch", 0.0), ("category", "instrument_family", 0.0),
        ("tags", "mood", 0.2),
    ]  # fmt: skip
    changed = ("conditions=[prompt,pitch,instrument_family]", "trainer.steps=12", *QUIET)
    with (
        single_rank(),
        pytest.raises(InputError, match=r"conditions was \[prompt, pitch, instrument_family, mood\], is now"),
    ):
        train_here(cache, tmp_path / "resumed", *changed)
    with single_rank(), pytest.raises(InputError, match=r"condition_dropout.prompt was 0.5"):
        train_here(cache, tmp_path / "resumed", ALL, "trainer.steps=12", *QUIET)


def test_labels_of_remote_shards_on_two_ranks(cache: Path, tmp_path: Path) -> None:
    """Without dropout, whose random numbers differ by rank, the losses are those of one rank with the local dataset."""
    overrides = (ALL, "condition_dropout=0", "model.prompt_dropout=0", "model.dropout=0", *QUIET, "trainer.steps=4")
    with single_rank():
        train_here(cache, tmp_path / "one", *overrides, "trainer.micro_batch=8")
    with Web(cache) as server:
        remote = f"data.cache_dir={tmp_path / 'shard_cache'}"
        train_ranks(server.address, tmp_path / "two", *overrides, remote, "trainer.micro_batch=4")
    assert rows(tmp_path / "two") == pytest.approx(rows(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["conditions=[prompt,pich]"],
            r"conditions=pich: .* no such label; did you mean 'pitch'\? labels are instrument_family",
        ),
        (
            ["conditions=[{instrument_family: number}]"],
            r"conditions=instrument_family: its values are not numbers: give instrument_family: category",
        ),
        (["conditions=[{mood: category}]"], r"conditions=mood: clips have several values of mood"),
        (["conditions=[{pitch: pitches}]"], r"conditions.pitch=pitches: there is no such condition"),
        (["conditions=[pitch,pitch]"], "each name once"),
        (["conditions=[]"], "at least one"),
        (["conditions=[prompt,pitch]", "condition_dropout={mood: 0.1}"], r"condition_dropout.mood=0.1: expected names"),
    ],
)
def test_conditions_are_checked_before_any_work(
    cache: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with single_rank(), pytest.raises(InputError, match=message):
        train_here(cache, tmp_path / "run", *overrides, "trainer.steps=1")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_changed_prefix_keeps_all_other_weights() -> None:
    """With a new condition whose vector is zero, each step has the same input as in the base."""
    base, every = tiny(), conditions()
    changed = CodecGPT(replace(base.config, conditions=[every[1], every[0], every[3]]))
    changed.load_state_dict(change_conditions(base, changed))
    before, after = base.backbone.wpe.weight, changed.backbone.wpe.weight
    assert torch.equal(after[3:], before[1:]) and torch.equal(after[1], before[0]) and not after[[0, 2]].any()
    prompt = torch.randn(2, 12)
    assert torch.equal(changed.prefix({"prompt": prompt}, 2)[:, 1:2], base.prefix({"prompt": prompt}, 2))
    back = CodecGPT(base.config)
    back.load_state_dict(change_conditions(changed, back))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_fine_tuning_adds_a_condition(cache: Path, labeled: Path, tmp_path: Path, rank: int) -> None:
    """The base's condition keeps its values; a new one is trained in full, by an adapter too."""
    run, adapter = tmp_path / "run", (f"finetune.lora.rank={rank}", "finetune.lora.dropout=0")
    with single_rank():
        train_here(
            cache,
            run,
            f"finetune.from={labeled}",
            "conditions=[pitch,instrument_family]",
            *adapter,
            "trainer.steps=4",
            *QUIET,
        )
    assert "conditions that the base does not have start untrained: instrument_family" in (run / "log.txt").read_text()
    before = load_file(labeled / "export" / "model.safetensors")
    after = load_file(run / "export" / "model.safetensors")
    assert torch.equal(before["conditions.0.null"], after["conditions.0.null"]) == bool(rank)
    assert rows(run)[1] < 4  # most of what the base knows is still there
    if rank:
        merged = load_merged(run / "export" / "adapter").state_dict()
        assert all(torch.equal(value, merged[name]) for name, value in after.items())


def test_fine_tuning_inherits_the_conditions(cache: Path, labeled: Path, tmp_path: Path) -> None:
    """Values that the base does not know are named, and count as missing."""
    own = write_cache(tmp_path / "own", clips=24, labels=("pitch",))
    manifest = json.loads((own / "manifest.json").read_text())
    with single_rank():
        train_here(own, tmp_path / "run", f"finetune.from={labeled}", "trainer.steps=1", *QUIET)
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert [each["name"] for each in config["conditions"]] == ["pitch"]
    assert manifest["labels"]["pitch"]["kind"] == "number"


def test_checkpoint_of_an_older_version_has_the_defaults(labeled: Path) -> None:
    """It records neither conditions nor what else is newer: its model had the prompt alone."""
    newest = checkpoint.Checkpoint.read(checkpoint.list_checkpoints(labeled)[-1])
    fields = {name: value for name, value in asdict(TINY).items() if name not in default_values()}
    old = replace(newest, metadata={**newest.metadata, "model": fields})
    check_model(old, TINY)
    with pytest.raises(InputError, match=r"conditions was \[prompt\], is now \[prompt, pitch, family, mood\]"):
        check_model(old, replace(TINY, conditions=conditions()))
