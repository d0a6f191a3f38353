"""Fine-tuning: a new run from trained weights, of all of them or of an adapter, that resumes and forgets little."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.loaded_run import find_export
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import Adapter, add_adapter
from pipeline.training import checkpoint
from tests.helpers.models import tiny
from tests.helpers.ranks import single_rank
from tests.helpers.training_caches import write_cache
from tests.training.test_train import kill_at, rows, start_training, train_here, train_ranks

LORA = ("finetune.lora.rank=4", "optim.lr=0.02")
Caches = dict[str, Path]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """The dataset of the base, and a smaller one with other melodies for the same prompts."""
    folder = tmp_path_factory.mktemp("caches")
    return {"base": write_cache(folder / "base"), "own": write_cache(folder / "own", clips=24, seed=1)}


@pytest.fixture(scope="module")
def base(caches: Caches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps, whose pattern is not the default."""
    run = tmp_path_factory.mktemp("runs") / "base"
    with single_rank():
        train_here(caches["base"], run, "trainer.steps=100", "trainer.val_every=0", "pattern=parallel")
    return run


@pytest.fixture(scope="module")
def tuned(caches: Caches, base: Path) -> Path:
    """An adapter of the base, after 12 steps."""
    with single_rank():
        tune(caches["own"], base, base.parent / "tuned", *LORA)
    return base.parent / "tuned"


def tune(cache: Path, base: Path | str, run: Path, *overrides: str) -> None:
    """Fine-tune in this process for 12 steps; settings of the base's size are not given."""
    train_here(cache, run, f"finetune.from={base}", "trainer.steps=12", "trainer.val_every=0", *overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def changed(old: Path, new: Path) -> set[str]:
    """The weights that differ between two runs, by the first parts of their names."""
    before, after = weights(old), weights(new)
    assert before.keys() == after.keys()
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {name.split(".")[3] if name.startswith("backbone.h") else name.partition(".")[0] for name in names}


def logits(model: CodecGPT) -> torch.Tensor:
    """The logits of a model on one sequence."""
    torch.manual_seed(0)
    return model.logits(torch.randint(0, 1025, (2, 4, 12)), {"prompt": torch.randn(2, 12)}).detach()


def loss_of(run: Path, cache: Path, folder: Path) -> float:
    """The validation loss of a run on a dataset, by a fine-tuning that changes nothing."""
    tune(cache, run, folder, "trainer.steps=1", "optim.lr=0")
    return rows(folder, "val/loss")[1]


def test_run_starts_from_the_weights_of_the_base(here: None, caches: Caches, base: Path, tmp_path: Path) -> None:
    """At step 0, with the base's pattern, size and normalization, whatever the defaults are."""
    tune(caches["own"], base, tmp_path / "run", "optim.lr=0", "model.width=32")
    assert sorted(rows(tmp_path / "run")) == list(range(1, 13)) and not changed(base, tmp_path / "run")
    tune(caches["own"], base, tmp_path / "all")
    assert rows(tmp_path / "all")[12] < rows(tmp_path / "all")[1] - 1
    assert changed(base, tmp_path / "all") >= {"attn", "mlp", "ln_1", "codes", "head", "prompt"}
    assert "fine-tuned from base, weights " in (tmp_path / "all" / "export" / "README.md").read_text()


def test_adapter_trains_only_what_is_asked(here: None, caches: Caches, base: Path, tuned: Path, tmp_path: Path) -> None:
    assert changed(base, tuned) == {"attn", "mlp"} and rows(tuned)[12] < rows(tuned)[1] - 1
    tune(caches["own"], base, tmp_path / "run", *LORA, "finetune.lora.train_embeddings=true", "trainer.ema=0.5")
    assert changed(base, tmp_path / "run") == {"attn", "mlp", "codes", "head", "prompt", "null_prompt"}
    (saved,) = (tmp_path / "run" / "checkpoints" / "step-12").glob("mp_rank_*")
    module = torch.load(saved, weights_only=False)["module"]
    assert not any("base_layer" in name for name in module) and "prompt_mean" in module
    assert "fine-tuned from base" in (tuned / "export" / "README.md").read_text()


def test_adapter_and_base_equal_the_merged_model(base: Path, tuned: Path) -> None:
    """In our reader, in the inference engine without merging, and in PEFT itself."""
    from peft import PeftModel

    adapter = find_export(tuned) / "adapter"
    merged, separate = (CodecGPT.from_pretrained(folder) for folder in (tuned / "export", adapter))
    torch.testing.assert_close(logits(separate), logits(merged), atol=1e-5, rtol=0)
    assert (logits(merged) - logits(CodecGPT.from_pretrained(base / "export"))).abs().max() > 0.1
    with pytest.warns(UserWarning, match="codec_audio_lm"):
        peft = PeftModel.from_pretrained(CodecGPT.from_pretrained(base / "export"), adapter).base_model.model
    torch.testing.assert_close(logits(peft), logits(merged), atol=1e-5, rtol=0)
    engines = [InferenceEngine(model) for model in (peft, merged)]
    steps = [engine.forward(engine.prefix(None, 2), engine.new_cache(2, 8), 0) for engine in engines]
    torch.testing.assert_close(*steps, atol=1e-5, rtol=0)
    assert separate.weights_sha256 != merged.weights_sha256


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="all", marks=pytest.mark.slow),
        pytest.param(("finetune.lora.rank=4", "finetune.lora.dropout=0.1"), id="lora"),
    ],
)
def test_resume_matches_unbroken_tuning(caches: Caches, base: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """After SIGKILL on two ranks, with dropout, mixed with the base's data: the same losses."""
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    overrides = (*overrides, f"finetune.from={base}", f"finetune.keep={caches['base']}", "model.dropout=0.1")
    overrides = (*overrides, "trainer.steps=12", "trainer.save_every=3")
    train_ranks(caches["own"], unbroken, *overrides)
    kill_at(start_training(caches["own"], run, *overrides), run, 5)
    assert "resuming at step" in train_ranks(caches["own"], run, *overrides)
    assert rows(run) == rows(unbroken) and rows(run, "val/loss") == rows(unbroken, "val/loss")
    for name, value in weights(unbroken).items():
        torch.testing.assert_close(value, weights(run)[name], atol=1e-6, rtol=0)


def test_zero_stages_train_the_same_adapter(
    here: None, caches: Caches, base: Path, tuned: Path, tmp_path: Path
) -> None:
    for stage in (0, 2, 3):  # the fixture has stage 1
        tune(caches["own"], base, tmp_path / str(stage), *LORA, f"deepspeed=zero{stage}")
        assert rows(tmp_path / str(stage)) == pytest.approx(rows(tuned), abs=1e-4)
        for name, value in weights(tuned).items():
            torch.testing.assert_close(value, weights(tmp_path / str(stage))[name], atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_adapter_resumes_on_another_number_of_ranks(caches: Caches, base: Path, tmp_path: Path, stage: int) -> None:
    overrides = (f"finetune.from={base}", *LORA, f"deepspeed=zero{stage}", "model.prompt_dropout=0")
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_ranks(caches["own"], whole, *overrides, "trainer.steps=10")
    train_ranks(caches["own"], run, *overrides, "trainer.steps=5")
    train_ranks(caches["own"], run, *overrides, "trainer.steps=10", "trainer.micro_batch=8", ranks=1)
    assert rows(run) == pytest.approx(rows(whole), abs=2e-3)


def test_kept_data_of_the_base_is_not_forgotten(here: None, caches: Caches, base: Path, tmp_path: Path) -> None:
    """Half of the clips from the base's dataset: its loss rises less; validation is on the own dataset alone."""
    losses = {}
    for name, keep in (("without", ()), ("with", (f"finetune.keep={caches['base']}", "finetune.keep_weight=0.5"))):
        tune(caches["own"], base, tmp_path / name, "trainer.steps=30", "trainer.micro_batch=8", *keep)
        losses[name] = loss_of(tmp_path / name, caches["base"], tmp_path / f"{name} kept")
    before = loss_of(base, caches["base"], tmp_path / "before")
    assert before < losses["with"] < losses["without"] - 1
    assert rows(tmp_path / "with", "val/loss")[30] < 7


def edit(folder: Path, **changes: object) -> Path:
    """Change the config of a copied export, and drop its checksums, as in older versions."""
    content = json.loads((folder / "config.json").read_text())
    del content["sha256"]
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_bases_of_other_codecs_are_refused(here: None, caches: Caches, base: Path, tmp_path: Path) -> None:
    """One line that names what differs and what to do, before the run folder exists."""
    model = CodecGPT.from_pretrained(base / "export")
    other = edit(
        Path(shutil.copytree(base / "export", tmp_path / "codec")), codec={**model.config.codec, "weights": "x"}
    )
    message = (
        r"does not fit finetune\.from=\S+/codec \(codec\.weights is '0+', expected 'x'\): preprocess .* again with"
    )
    with pytest.raises(InputError, match=message):
        tune(caches["own"], other, tmp_path / "run")
    embedder = {**model.config.embedder, "name": "y"}
    other = edit(Path(shutil.copytree(base / "export", tmp_path / "embedder")), embedder=embedder)
    with pytest.raises(InputError, match=r"embedder\.name is 'synthetic', expected 'y'.* embedder=y"):
        tune(caches["own"], other, tmp_path / "run")
    more = tiny(codebooks=8, pattern="parallel", positions=128)
    more.save_pretrained(tmp_path / "more")
    other = edit(tmp_path / "more", codec=model.config.codec, embedder=model.config.embedder)
    with pytest.raises(InputError, match=r"it has 4 codebooks, expected 8 or more.*codec\.codebooks=8"):
        train_here(caches["own"], tmp_path / "run", f"finetune.from={other}", "~codec.codebooks", "+codec.codebooks=8")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.from=nowhere"], r"finetune\.from=nowhere: there is no such folder"),
        (["finetune.lora.rank=4"], r"finetune\.lora\.rank=4: there is no base; give finetune\.from=RUN too"),
        (["finetune.keep=shards"], r"finetune\.keep=shards: there is no base"),
        (["finetune.from=BASE", "pattern=delay"], r"pattern\.name=delay: .* has parallel.*remove pattern="),
        (
            ["finetune.from=BASE", "model.layers=3"],
            r"model\.layers=3: finetune\.from=\S+ has 2, .*remove model\.layers=",
        ),
        (["finetune.from=BASE", "codec.codebooks=2"], r"codec\.codebooks=2: .* has 4"),
        (["finetune.from=BASE", "finetune.keep_weight=1"], r"finetune\.keep_weight=1: expected .* below 1"),
        (
            ["finetune.from=TUNED/export/adapter", *LORA],
            r"is an adapter, and adapters are not stacked: give the merged",
        ),
    ],
)
def test_contradicting_settings_are_refused(
    here: None, caches: Caches, base: Path, tuned: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    overrides = [text.replace("BASE", str(base)).replace("TUNED", str(tuned)) for text in overrides]
    with pytest.raises(InputError, match=message):
        train_here(caches["own"], tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_longer_clips_than_the_base_reads_are_refused(here: None, base: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "long", clips=8, lengths=(1100,))
    with pytest.raises(InputError, match=r"1100 frames are 1100 steps .* has 1024 positions: crop with data\.seconds"):
        tune(cache, base, tmp_path / "run")


def test_resume_with_another_adapter_or_base_is_refused(
    here: None, caches: Caches, base: Path, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    for overrides, message in (
        (["finetune.lora.rank=8"], r"finetune\.lora\.rank was 4, is now 8"),
        (["finetune.lora.rank=0"], r"finetune\.lora\.rank was 4, is now None"),
        ([*LORA, "finetune.lora.alpha=3"], r"finetune\.lora\.alpha was None, is now 3"),
    ):
        with pytest.raises(InputError, match=message):
            tune(caches["own"], base, tmp_path / "run", *overrides)
    with pytest.raises(InputError, match=r"the sha256 of finetune\.from was"):
        tune(caches["own"], tuned, tmp_path / "run", *LORA)


def test_tuned_models_are_bases(here: None, caches: Caches, base: Path, tuned: Path, tmp_path: Path) -> None:
    """A merged export, for an adapter of its own; an adapter with its base, to train all weights."""
    tune(caches["own"], tuned, tmp_path / "again", *LORA)
    assert "note: the base is an export with an adapter merged into it" in (tmp_path / "again" / "log.txt").read_text()
    tune(caches["own"], tuned / "export" / "adapter", tmp_path / "all", "optim.lr=0")
    for name, value in weights(tuned).items():
        torch.testing.assert_close(weights(tmp_path / "all")[name], value, atol=1e-5, rtol=0)


def test_missing_or_changed_base_of_an_adapter_is_named(here: None, caches: Caches, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    tune(caches["own"], tmp_path / "base", tmp_path / "run", *LORA)
    adapter = tmp_path / "run" / "export" / "adapter"
    shutil.rmtree(tmp_path / "base" / "export")
    with pytest.raises(InputError, match=r"the adapter \S+ needs its base \S+/base/export: "):
        CodecGPT.from_pretrained(adapter)
    with pytest.raises(InputError, match=r"step-12 needs its base"):
        checkpoint.export(checkpoint.list_checkpoints(tmp_path / "run")[-1], tmp_path / "out")
    CodecGPT.from_pretrained(base / "export").save_pretrained(tmp_path / "base" / "export")
    assert CodecGPT.from_pretrained(adapter)
    tiny(pattern="parallel", positions=1024).save_pretrained(tmp_path / "base" / "export")
    with pytest.raises(InputError, match=r"belongs to other weights than those of \S+/export .*use the merged export"):
        CodecGPT.from_pretrained(adapter)
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(InputError, match=r"is not the adapter of a CodecGPT"):
        CodecGPT.from_pretrained(adapter)


def test_adapters_need_peft_only_to_train(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(rank=2, alpha=4.0, dropout=0.0, train_embeddings=False, base="base", base_sha256="0")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"finetune\.lora\.rank=2 needs PEFT .*pip install 'codec-audio-lm\[lora\]'"):
        add_adapter(tiny(), adapter)
    assert CodecGPT.from_pretrained(tuned / "export" / "adapter")
