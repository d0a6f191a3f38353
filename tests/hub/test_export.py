"""A trained model for others: put together from any checkpoint, described by its card, sent to a hub and read back."""

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
from pipeline.config.cli import compose
from pipeline.evaluation.losses import ValidationLosses
from pipeline.evaluation.metrics import MeanWithCI
from pipeline.hub import model_card, upload
from pipeline.models.codec_gpt import WEIGHTS, CodecGPT
from pipeline.training import checkpoint
from tests.helpers.hub_server import Hub
from tests.helpers.training_caches import write_cache
from tests.training.test_train import ROOT, SMALL, fresh_env

TRAINED = ("trainer.steps=6", "trainer.save_every=3", "trainer.val_every=3", "trainer.ema=0.9")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, saved and validated at the third and the last, with a running mean of its weights."""
    place = tmp_path_factory.mktemp("runs")
    cache = write_cache(place / "cache")
    words = ["+exp=delay_gpt2", f"shards={cache}", f"run={place / 'run'}", *SMALL, *TRAINED]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train", *words], env={**fresh_env(place), "PYTHONPATH": str(ROOT)},
        cwd=place, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.fixture
def server() -> Iterator[Hub]:
    found = Hub()
    yield found
    found.close()


def exported(run: Path, out: Path, *words: str) -> Path:
    """`python -m pipeline.export` in this process."""
    assert export.main.task(compose("export", [f"run='{run}'", f"out='{out}'", *words])) == 0  # type: ignore[attr-defined]
    return out


def command(place: Path, server: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline.export`, with a hub of our own and a token for it."""
    told = {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place),
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline.export", *words], env={**os.environ, **told, "PYTHONPATH": str(ROOT)},
        cwd=place, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_an_export_is_what_training_exported(run: Path, tmp_path: Path) -> None:
    out = exported(run, tmp_path / "export")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = load_file(out / WEIGHTS), load_file(run / "export" / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("config.json", model_card.NAME):
        assert (out / name).read_text() == (run / "export" / name).read_text()
    model = CodecGPT.from_pretrained(out)
    assert not model.training and float(model.prompt_std.max()) != 1.0


def test_the_last_steps_own_weights_can_be_had_too(run: Path, tmp_path: Path) -> None:
    mean = load_file(exported(run, tmp_path / "mean") / WEIGHTS)
    last = load_file(exported(run, tmp_path / "last", "weights=last") / WEIGHTS)
    assert not torch.equal(mean["head.weight"], last["head.weight"])
    assert torch.equal(mean["prompt_mean"], last["prompt_mean"])


def test_any_checkpoint_can_be_chosen(run: Path, tmp_path: Path) -> None:
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
    assert "| steps | 3 of 6 |" in (tmp_path / "best" / model_card.NAME).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=."], r"run=\. has no complete checkpoint"),
        (["run=.", "checkpoint=step-7"], "checkpoint=step-7: not a complete checkpoint; give newest, best, or"),
        (["run=.", "weights=all"], "weights=all: expected auto or last"),
        (["run=.", "push=me"], "push=me: give OWNER/NAME"),
        (["run=.", "push='a b/c'"], "push=a b/c: .*"),
    ],
)
def test_what_cannot_be_exported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main.task(compose("export", words))  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_somebody_s_readme_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(InputError, match=r"README\.md is not a model card"):
        exported(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    exported(run, exported(run, tmp_path / "export"))


def test_a_run_that_never_validated_has_no_best(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for path in checkpoint.list_checkpoints(tmp_path / "run"):
        state = checkpoint.read_metadata(path)
        del state["val_loss"]
        (path / checkpoint.COMPLETE).write_text(json.dumps(state))
    with pytest.raises(InputError, match="no checkpoint with a validation loss: give checkpoint=newest"):
        exported(tmp_path / "run", tmp_path / "out", "checkpoint=best")


def test_the_card_tells_data_model_training_and_licences(run: Path, tmp_path: Path) -> None:
    text = (exported(run, tmp_path / "out") / model_card.NAME).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert "encodec_embedded" in head["tags"]
    config = CodecGPT.from_pretrained(tmp_path / "out")
    assert f"| parameters | {sum(p.numel() for p in config.parameters()):,} (backbone " in text
    assert "| synthetic, train | 0.002 hours in 45 clips |" in text and "| synthetic, valid | " in text
    assert "| steps | 6 of 6 |" in text and "| clips seen | 24, 4 a step on 1 ranks |" in text
    assert "| weights | running mean with decay 0.9 |" in text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name, split in (("training", "train"), ("validation", "val")):
        loss = [row[f"{split}/loss"] for row in rows if f"{split}/loss" in row][-1]
        assert f"| {name} loss | {loss:.4f} nats a code at step 6 |" in text
    assert f"weights sha256 `{'0' * 16}`" in text and "| pattern | delay, 4 codebooks of 1,024 codes |" in text
    assert "python -m pipeline.generate run=FOLDER" in text and 'from_pretrained("FOLDER")' in text
    assert "## Licences" in text and "codec that ships with the program" in text
    assert str(tmp_path) not in text and str(run.parent) not in text  # nobody's folders are published


def test_the_card_names_the_licence_of_metas_weights(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    found = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    state = checkpoint.read_metadata(found)
    state["model"]["codec"]["name"], state["model"]["embedder"]["name"] = "encodec_24khz", "encodecmae_base"
    (found / checkpoint.COMPLETE).write_text(json.dumps(state))
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["model"]["pretrained"], settings["shards"] = "gpt2", {"a": "gone/a", "b": "gone/b"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    text = model_card.write(found).read_text()
    assert "CC-BY-NC-4.0" in text and "`lpepino/encodecmae-base` on the hub" in text
    assert "Training started from `gpt2`" in text and "| start | pretrained weights of gpt2 |" in text
    assert "| cache `a` | not at hand when this card was written |" in text
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        model_card.write(found)


def test_the_card_shows_figures_that_were_measured_on_these_weights(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    found = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    figure = MeanWithCI(0.5, 0.25, 0.75, 8).to_dict()
    told = {
        "loss": ValidationLosses([2.0, 3.0], [4.0, 5.0], 6.93, 60).to_dict(75),
        "temperatures": {"0.7": {"fidelity": figure, "pitch": figure}},
        "ceiling": {"fidelity": figure, "pitch": figure},
        "floor": {"fidelity": figure},
        "settings": {"n": 8, "split": "valid", "sampling": {"guidance": 1.0}},
        "distance": {"embedding": {"name": "made up"}, "n": 8},
        "export": {"sha256": hashlib.sha256((tmp_path / "run" / "export" / WEIGHTS).read_bytes()).hexdigest()},
    }
    measured = tmp_path / "run" / "evaluation" / "evaluate.json"
    measured.parent.mkdir()
    measured.write_text(json.dumps(told))
    text = model_card.write(found).read_text()
    assert "on 60 clips of the valid split" in text and "| model: 2.500 | 2.000 | 3.000 |" in text
    assert "| temperature 0.7 | 0.500 [0.250, 0.750] | 0.500 [0.250, 0.750] |" in text
    assert "| floor | 0.500 [0.250, 0.750] | - |" in text
    for others in ({**told, "export": {"sha256": "of other weights"}}, {**told, "loss": 3}, [], {"export": "x"}):
        measured.write_text(json.dumps(others))
        assert "## Figures" not in model_card.write(found).read_text()


def test_the_card_takes_texts_of_a_run_folder_as_texts(run: Path, tmp_path: Path) -> None:
    """Neither HTML nor Markdown nor a header; no remote cache is opened; a log of others is read as far as it goes."""
    shutil.copytree(run, tmp_path / "run")
    found = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["name"], settings["optim"]["schedule"]["name"] = "a\n---\n<script>x</script>", "[x](http://y)|`z`"
    settings["shards"] = {"a": "http://user:Hidden0Value@127.0.0.1:9/cache", "b": "memory://cache"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": "x"}\n{"train/loss": 3}\n{"step": 6, "train/loss": "<b>"}\n' + b"[" * 99_999 + b"\n\xff")
    text = model_card.write(found).read_text()
    assert "# a --- &#60;script&#62;x&#60;/script&#62;\n" in text and text.count("\n---\n") == 1
    assert "&#91;x&#93;(http://y)&#124;&#96;z&#96; schedule" in text
    assert "Hidden0Value" not in text and "| cache" not in text and "nats a code at step 6" in text
    del settings["trainer"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match=r"is not what pipeline\.train writes \(KeyError: 'trainer'"):
        model_card.write(found)


def test_pushed_and_read_back_from_the_hub_it_is_the_same(run: Path, tmp_path: Path, server: Hub) -> None:
    (run / "export" / "notes.txt").write_text("not for the hub")
    done = command(tmp_path, server, f"run={run}", "push=me/tiny")
    assert done.returncode == 0, done.stderr
    assert "pushed to" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert sorted(server.files) == ["README.md", "config.json", "model.safetensors"] and server.private is True
    script = (
        "from pipeline.models.codec_gpt import CodecGPT; CodecGPT.from_pretrained('me/tiny').save_pretrained('back')"
    )
    told = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "other"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **told}, cwd=tmp_path, check=True, timeout=240)
    ours, theirs = load_file(tmp_path / "back" / WEIGHTS), load_file(run / "export" / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_hub_that_refuses_leaves_the_export_and_says_how_to_send_it(run: Path, tmp_path: Path, server: Hub) -> None:
    server.refuse = 403
    done = command(tmp_path, server, f"run={run}", f"out={tmp_path / 'out'}", "push=me/tiny")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the hub did not take it" in done.stderr and f"hf upload me/tiny {tmp_path / 'out'}" in done.stderr
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_without_a_token_or_a_network_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"push=me/tiny: there is no token for the hub; run `hf auth login`"):
        upload.check("me/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        upload.check("me/tiny")
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    upload.check("me/tiny")
