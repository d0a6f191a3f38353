"""Training with a transformer over codebooks as the head: resume, export, fine-tuning, by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.ranks import single_rank
from tests.helpers.training_caches import write_cache
from tests.training.test_train import rows, train_here

DEPTH = ("pattern=depth", "pattern.layers=2", "pattern.width=16", "pattern.heads=2")
OPTIONS = {"layers": 2, "width": 16, "heads": 2}
SIX_STEPS = ("model.dropout=0.1", "trainer.ema=0.5", "trainer.steps=6", "trainer.save_every=3", "trainer.val_every=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture(scope="module")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint after three."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    with single_rank():
        train_here(cache, run, *DEPTH, *SIX_STEPS)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def test_resume_matches_unbroken_run(here: None, cache: Path, unbroken: Path, tmp_path: Path) -> None:
    """With dropout in the transformer over codebooks, also where its activations are computed again."""
    run, newest = tmp_path / "run", unbroken / "checkpoints" / "step-3"
    train_here(cache, run, *DEPTH, *SIX_STEPS, f"resume={newest}", "trainer.activation_checkpointing=true")
    losses = rows(unbroken)
    assert losses[6] < losses[1] and rows(run) == {step: losses[step] for step in (4, 5, 6)}
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(unbroken).items())


def test_export_needs_no_settings_of_the_run(unbroken: Path) -> None:
    model = CodecGPT.from_pretrained(unbroken / "export")
    assert (model.config.pattern, model.config.pattern_options) == ("depth", OPTIONS)
    assert "head.transformer.h.1.mlp.c_fc.weight" in model.state_dict()


def test_adapter_of_the_backbone_keeps_the_head(here: None, cache: Path, unbroken: Path, tmp_path: Path) -> None:
    """The pattern and its options come from the base; the transformer over codebooks is frozen."""
    run, short = tmp_path / "tuned", ("trainer.steps=2", "trainer.val_every=0")
    train_here(cache, run, f"finetune.from={unbroken}", "finetune.lora.rank=2", *short)
    before, after = weights(unbroken), weights(run)
    changed = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"backbone"} and before.keys() == after.keys()


def test_other_options_than_those_of_the_base_are_refused(
    here: None, cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"pattern\.width=8: .* has 16.*remove pattern\.width="):
        train_here(cache, tmp_path / "run", f"finetune.from={unbroken}", *DEPTH, "pattern.width=8")


def test_heads_must_divide_the_width(here: None, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pattern\.width=16 is not a multiple of pattern\.heads=3"):
        train_here(cache, tmp_path / "run", *DEPTH, "pattern.heads=3")
