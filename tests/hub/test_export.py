"""Exporting a model from any checkpoint, with its model card; uploading it to a hub and loading it from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline import export
from pipeline.common.errors import InputError
from pipeline.evaluation.losses import loss_result
from pipeline.evaluation.results import LossResults
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import generate
from pipeline.generation.settings import sampling_settings
from pipeline.hub import model_card, upload
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_files import WEIGHTS
from pipeline.models.quantization import quantize_state
from pipeline.training import checkpoint
from tests.helpers.hub_server import Hub
from tests.helpers.ranks import ROOT, single_rank
from tests.helpers.training_caches import write_cache
from tests.training.test_train import train_here

TRAINED = ("trainer.steps=6", "trainer.save_every=3", "trainer.val_every=3", "trainer.ema=0.9")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a moving average of its weights, saved and validated at steps 3 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = write_cache(folder / "dataset")
    with single_rank():
        train_here(dataset, folder / "run", *TRAINED)
    return folder / "run"


@pytest.fixture
def server() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def exported(run: Path, out: Path, *overrides: str) -> Path:
    """Run `python -m pipeline.export` in this process, and return `out`."""
    assert export.main.task([f"run='{run}'", f"out='{out}'", *overrides]) == 0  # type: ignore[attr-defined]
    return out


def write_card(path: Path) -> Path:
    """Write the model card of a checkpoint."""
    return model_card.write_model_card(path, checkpoint.read_metadata(path))


def run_export(folder: Path, server: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline.export` with a local hub and a token for it."""
    settings = {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder),
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline.export", *arguments], env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_export_equals_the_export_of_training(run: Path, tmp_path: Path) -> None:
    out = exported(run, tmp_path / "export")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = load_file(out / WEIGHTS), load_file(run / "export" / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("config.json", model_card.FILE_NAME):
        assert (out / name).read_text() == (run / "export" / name).read_text()
    model = CodecGPT.from_pretrained(out)
    assert not model.training and float(model.prompt_std.max()) != 1.0


def test_weights_without_moving_average_are_exported(run: Path, tmp_path: Path) -> None:
    mean = load_file(exported(run, tmp_path / "mean") / WEIGHTS)
    last = load_file(exported(run, tmp_path / "last", "weights=last") / WEIGHTS)
    assert not torch.equal(mean["head.weight"], last["head.weight"])
    assert torch.equal(mean["prompt_mean"], last["prompt_mean"])


def test_any_checkpoint_is_exported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    run, (old, new) = tmp_path / "run", checkpoint.list_checkpoints(tmp_path / "run")
    for path, loss in ((old, 1.0), (new, 2.0)):
        state = {**checkpoint.read_metadata(path), "val_loss": loss}
        (path / checkpoint.COMPLETE).write_text(json.dumps(state))
    hashes = {
        name: hashlib.sha256(
            (exported(run, tmp_path / name, f"checkpoint={choice}") / WEIGHTS).read_bytes()
        ).hexdigest()
        for name, choice in (("newest", "newest"), ("best", "best"), ("old", f"'{old}'"))
    }
    assert hashes["best"] == hashes["old"] != hashes["newest"]
    assert "| steps | 3 of 6 |" in (tmp_path / "best" / model_card.FILE_NAME).read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=."], r"run=\. has no complete checkpoint"),
        (["run=.", "checkpoint=step-7"], "checkpoint=step-7: not a complete checkpoint; give newest, best, or"),
        (["run=.", "weights=all"], "weights=all: expected auto or last"),
        (["run=.", "push=me"], "push=me: expected OWNER/NAME"),
        (["run=.", "push='a b/c'"], "push=a b/c: .*"),
    ],
)
def test_settings_that_cannot_be_exported_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main.task(overrides)  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_readme_of_another_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(InputError, match=r"README\.md is not a model card"):
        exported(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    exported(run, exported(run, tmp_path / "export"))


def test_run_without_validation_has_no_best(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for path in checkpoint.list_checkpoints(tmp_path / "run"):
        state = checkpoint.read_metadata(path)
        del state["val_loss"]
        (path / checkpoint.COMPLETE).write_text(json.dumps(state))
    with pytest.raises(InputError, match="no checkpoint with a validation loss: give checkpoint=newest"):
        exported(tmp_path / "run", tmp_path / "out", "checkpoint=best")


def test_export_of_8_bits_is_small_and_batch_invariant(run: Path, tmp_path: Path) -> None:
    """Its weights are off by at most half of a step; exported again, they are the same."""
    full, out = exported(run, tmp_path / "full"), exported(run, tmp_path / "small", "precision=int8")
    assert (out / WEIGHTS).stat().st_size < 0.3 * (full / WEIGHTS).stat().st_size
    model, before = CodecGPT.from_pretrained(out), CodecGPT.from_pretrained(full).state_dict()
    assert model.is_quantized and "| precision | 8 bits |" in (out / model_card.FILE_NAME).read_text()
    for name, value in model.state_dict().items():
        assert float((value - before[name]).abs().max()) <= float(before[name].abs().max()) / 127 * 0.51, name
    stored, again = load_file(out / WEIGHTS), quantize_state(model.state_dict())
    assert stored.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in stored.items())
    engine, prompts = InferenceEngine(model), torch.randn(3, model.config.prompt_dim)
    sampling = sampling_settings(temperature=1)
    codes, _ = generate(engine, {"prompt": prompts}, 12, sampling, [5, 6, 7])
    for i in range(3):
        assert torch.equal(generate(engine, {"prompt": prompts[i : i + 1]}, 12, sampling, [5 + i])[0][0], codes[i])


def test_card_has_data_model_training_and_licences(run: Path, tmp_path: Path) -> None:
    text = (exported(run, tmp_path / "out") / model_card.FILE_NAME).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert "encodec_embedded" in head["tags"]
    config = CodecGPT.from_pretrained(tmp_path / "out")
    assert f"| parameters | {sum(p.numel() for p in config.parameters()):,} (backbone " in text
    assert "| synthetic, train | 0.002 hours in 45 clips |" in text and "| synthetic, valid | " in text
    assert "| steps | 6 of 6 |" in text and "| clips seen | 24 (4 per step, 1 rank) |" in text
    assert "| weights | exponential moving average, decay 0.9 |" in text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name, split in (("training", "train"), ("validation", "val")):
        loss = [row[f"{split}/loss"] for row in rows if f"{split}/loss" in row][-1]
        assert f"| {name} loss | {loss:.4f} nats per code at step 6 |" in text
    assert f"weights sha256 `{'0' * 16}`" in text and "| pattern | delay, 4 codebooks of 1,024 codes |" in text
    assert "python -m pipeline.generate run=FOLDER" in text and 'pipeline.load_run("FOLDER")' in text
    assert "## Licences" in text and "codec that ships with the program" in text
    assert str(tmp_path) not in text and str(run.parent) not in text  # no local path is published


def test_card_names_licences_of_other_weights(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    state = checkpoint.read_metadata(path)
    state["model"]["codec"]["name"], state["model"]["embedder"]["name"] = "encodec_24khz", "encodecmae_base"
    (path / checkpoint.COMPLETE).write_text(json.dumps(state))
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["model"]["pretrained"], settings["shards"] = "gpt2", {"a": "gone/a", "b": "gone/b"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    text = write_card(path).read_text()
    assert "CC-BY-NC-4.0" in text and "(`lpepino/encodecmae-base` on the hub)" in text
    assert "Training started from `gpt2`" in text and "| initialization | pretrained weights of gpt2 |" in text
    assert "| dataset `a` | not available when this card was written |" in text
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        write_card(path)


def test_card_shows_evaluation_of_the_same_weights(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    figure = {"mean": 0.5, "interval": [0.25, 0.75], "n": 8}
    model, unigram, uniform = (loss_result(nats, 75) for nats in ([2.0, 3.0], [4.0, 5.0], [6.93, 6.93]))
    results = {
        "loss": LossResults(clips=60, model=model, unigram=unigram, uniform=uniform).to_dict(),
        "temperatures": {"0.7": {"fidelity": figure, "pitch": figure}},
        "ceiling": {"fidelity": figure, "pitch": figure},
        "floor": {"fidelity": figure},
        "settings": {"n": 8, "split": "valid", "sampling": {"guidance": 1.0}},
        "distance": {"embedding": {"name": "synthetic"}, "n": 8},
        "export": {"sha256": hashlib.sha256((tmp_path / "run" / "export" / WEIGHTS).read_bytes()).hexdigest()},
    }
    measured = tmp_path / "run" / "evaluation" / "evaluate.json"
    measured.parent.mkdir()
    measured.write_text(json.dumps(results))
    text = write_card(path).read_text()
    assert "on 60 clips of the valid split" in text and "| model: 2.500 | 2.000 | 3.000 |" in text
    assert "| temperature 0.7 | 0.500 [0.250..0.750] | 50 [25..75] |" in text
    assert "| floor | 0.500 [0.250..0.750] | - |" in text
    for others in ({**results, "export": {"sha256": "of other weights"}}, {**results, "loss": 3}, [], {"export": "x"}):
        measured.write_text(json.dumps(others))
        assert "## Evaluation" not in write_card(path).read_text()


def test_card_escapes_texts_of_the_run_folder(run: Path, tmp_path: Path) -> None:
    """No text becomes HTML, Markdown or a header; no remote dataset is opened; broken rows of the log are skipped."""
    shutil.copytree(run, tmp_path / "run")
    path = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["name"], settings["optim"]["schedule"]["name"] = "a\n---\n<script>x</script>", "[x](http://y)|`z`"
    settings["shards"] = {"a": "http://user:Hidden0Value@127.0.0.1:9/cache", "b": "memory://cache"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": "x"}\n{"train/loss": 3}\n{"step": 6, "train/loss": "<b>"}\n' + b"[" * 99_999 + b"\n\xff")
    text = write_card(path).read_text()
    assert "# a --- &#60;script&#62;x&#60;/script&#62;\n" in text and text.count("\n---\n") == 1
    assert "&#91;x&#93;(http://y)&#124;&#96;z&#96; schedule" in text
    assert "Hidden0Value" not in text and "| dataset" not in text and "nats per code at step 6" in text
    del settings["trainer"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match=r"pipeline\.train did not write .* \(KeyError: 'trainer'"):
        write_card(path)


@pytest.mark.slow
def test_pushed_model_loads_from_the_hub(run: Path, tmp_path: Path, server: Hub) -> None:
    (run / "export" / "notes.txt").write_text("not for the hub")
    done = run_export(tmp_path, server, f"run={run}", "push=me/tiny")
    assert done.returncode == 0, done.stderr
    assert "pushed to" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert sorted(server.files) == ["README.md", "config.json", "model.safetensors"] and server.private is True
    script = (
        "from pipeline.models.codec_gpt import CodecGPT; CodecGPT.from_pretrained('me/tiny').save_pretrained('back')"
    )
    environment = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "other"), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, cwd=tmp_path, check=True, timeout=240
    )
    ours, theirs = load_file(tmp_path / "back" / WEIGHTS), load_file(run / "export" / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_refused_upload_keeps_the_export(run: Path, tmp_path: Path, server: Hub) -> None:
    server.refuse = 403
    done = run_export(tmp_path, server, f"run={run}", f"out={tmp_path / 'out'}", "push=me/tiny")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the upload failed" in done.stderr and f"hf upload me/tiny {tmp_path / 'out'}" in done.stderr
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_upload_needs_a_token_and_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"push=me/tiny: there is no token for the hub; run `hf auth login`"):
        upload.check_upload("me/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        upload.check_upload("me/tiny")
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    upload.check_upload("me/tiny")
