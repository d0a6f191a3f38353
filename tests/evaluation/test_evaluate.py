"""`python -m pipeline.evaluate`: figures that can be checked by hand, wavs to listen to, and caches that do not fit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio import metrics
from pipeline.audio.codecs import load_codec
from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardedDataset, iter_once
from pipeline.data.manifest import Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.storage import open_storage
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.trained_run import Workspace, run_command

SMALL = ("n=3", "temperatures=[0,0.7]", "resamples=50")


@pytest.fixture(scope="module")
def evaluated(workspace: Workspace) -> tuple[dict, Path]:
    """evaluate.json, and the folder that it stands in."""
    out = workspace.root / "evaluated"
    run_command("evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={out}", *SMALL)
    return json.loads((out / "evaluate.json").read_text()), out


def test_the_loss_is_the_mean_over_every_validation_clip(workspace: Workspace, evaluated: tuple[dict, Path]) -> None:
    model, valid = CodecGPT.from_pretrained(workspace.run() / "export"), ShardedDataset(workspace.dataset, "valid", 2)
    with torch.no_grad():
        parts = [model(b.codes, b.frames, b.prompts) for b in iter_once(valid, 1)]
    nats, cells = sum(p[0] for p in parts), sum(p[1] for p in parts)
    told = evaluated[0]["loss"]
    assert told["clips"] == len(valid) and told["model"]["nats_codebook"] == pytest.approx((nats / cells).tolist())
    assert told["model"]["bits_second"] == pytest.approx(float((nats / cells).sum()) / math.log(2) * 75)
    assert told["model"]["perplexity"][1] == pytest.approx(math.exp(told["model"]["nats_codebook"][1]))
    assert told["uniform"]["nats"] == pytest.approx(math.log(1024))


def test_the_unigram_baseline_knows_how_often_each_code_comes_in_training(
    workspace: Workspace, evaluated: tuple[dict, Path]
) -> None:
    train, valid = (
        np.concatenate([b.codes[0].numpy() for b in iter_once(ShardedDataset(workspace.dataset, s, 2), 1)], 1)
        for s in ("train", "valid")
    )
    for k in (0, 1):
        counts = np.bincount(train[k], minlength=1024) + 1
        expected = -np.log(counts / counts.sum())[valid[k]].mean()
        assert evaluated[0]["loss"]["unigram"]["nats_codebook"][k] == pytest.approx(expected)


def test_ceiling_and_floor_are_the_codecs_reconstructions_of_own_and_other_clips(
    workspace: Workspace, evaluated: tuple[dict, Path]
) -> None:
    told, out = evaluated
    clips = list(sample_clips(open_storage(workspace.dataset), Manifest.load(workspace.dataset), 3, 0, "valid"))
    codec, embedder = load_codec("encodec_embedded", 2), load_embedder("encodecmae_tiny")
    heard = [codec.decode(torch.from_numpy(clip.codes.astype(np.int64))[None])[0, 0] for clip in clips]
    vectors = np.stack([embedder.embed(wav[None])[0].numpy() for wav in heard])
    prompts = np.stack([clip.prompt for clip in clips]).astype(np.float32)
    cosines = metrics.cosine(prompts[:, None], vectors[None])
    assert told["ceiling"]["fidelity"]["mean"] == pytest.approx(float(np.diagonal(cosines).mean()), abs=1e-3)
    others = (cosines.sum() - np.trace(cosines)) / 6
    assert told["floor"]["fidelity"]["mean"] == pytest.approx(float(others), abs=1e-3)
    right = [
        abs(metrics.pitch(w.numpy(), 24_000) - c.metadata["labels"]["pitch"]) <= 0.5
        for w, c in zip(heard, clips, strict=True)
    ]
    assert told["ceiling"]["pitch"]["mean"] == pytest.approx(np.mean(right))
    for clip, wav in zip(clips, heard, strict=True):
        written = soundfile.read(out / f"{clip.key}.codec.wav", dtype="float32")[0]
        assert np.allclose(written, wav.clip(-1, 1), atol=1e-4)


def test_there_is_a_sound_of_the_clips_length_for_each_temperature(evaluated: tuple[dict, Path]) -> None:
    told, out = evaluated
    assert set(told["temperatures"]) == {"0", "0.7"}
    for row in told["temperatures"].values():
        assert {"fidelity", "pitch", "pitch_class", "distance", "different", "silent", "looping"} == set(row)
        low, high = row["fidelity"]["interval"]
        assert low <= row["fidelity"]["mean"] <= high and row["fidelity"]["n"] == 3
    wavs = list(out.glob("*.wav"))
    assert len(wavs) == 9 and {soundfile.info(wav).frames for wav in wavs} == {9_600}
    greedy, sampled = (sorted(out.glob(f"*.{voice}.wav"))[0].read_bytes() for voice in ("t0", "t0.7"))
    assert greedy != sampled


def test_the_same_again_is_the_same_whatever_the_batch(
    workspace: Workspace, evaluated: tuple[dict, Path], tmp_path: Path
) -> None:
    told, out = evaluated
    run_command(
        "evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path}", *SMALL, "batch=2"
    )
    for wav in out.glob("*.wav"):
        assert (tmp_path / wav.name).read_bytes() == wav.read_bytes()
    again = json.loads((tmp_path / "evaluate.json").read_text())
    assert again["temperatures"] == told["temperatures"]


def test_figures_and_the_place_to_listen_are_printed(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run = workspace.run("parallel")
    run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", "n=2", "temperatures=[1]", "pitch=false")
    told = capsys.readouterr().out
    for word in ("unigram", "uniform", "bits/s", "prompt fidelity", "temperature 1", "ceiling (codec)", "floor"):
        assert word in told
    assert f"listen: {run}/evaluation/*.wav" in told and (run / "evaluation" / "evaluate.json").is_file()
    assert "pitch" not in told


def test_one_clip_has_no_floor_and_no_distance_but_is_measured(workspace: Workspace, tmp_path: Path) -> None:
    run_command(
        "evaluate",
        f"run={workspace.run()}",
        f"shards={workspace.dataset}",
        "n=1",
        "temperatures=[0.5]",
        f"out={tmp_path}",
    )
    told = json.loads((tmp_path / "evaluate.json").read_text())
    assert (
        told["floor"] == {} and "distance" not in told["ceiling"] and told["temperatures"]["0.5"]["fidelity"]["n"] == 1
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["split=test2"], "has no clips in test2: it has test, train, valid"),
        (["n=0"], "n=0: give 1 or more"),
        (["temperatures=[-1]"], r"temperatures=\[-1\]: give 0 or more"),
    ],
)
def test_settings_that_measure_nothing_are_refused(workspace: Workspace, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command(
            "evaluate",
            f"run={workspace.run()}",
            f"shards={workspace.dataset}",
            f"out={workspace.root / 'none'}",
            *words,
        )


@pytest.mark.parametrize("part", ["codec", "embedder"])
def test_a_cache_of_another_codec_or_embedder_is_refused_by_what_differs(
    workspace: Workspace, tmp_path: Path, part: str
) -> None:
    shutil.copytree(workspace.dataset, tmp_path / "cache")
    manifest = Manifest.load(tmp_path / "cache")
    getattr(manifest, part)["weights"] = "f" * 64
    manifest.save(tmp_path / "cache")
    with pytest.raises(InputError, match=f"{part}.weights='{'f' * 64}' where '.*' is wanted"):
        run_command("evaluate", f"run={workspace.run()}", f"shards={tmp_path / 'cache'}", f"out={tmp_path}", *SMALL)


def test_a_run_that_w_and_b_does_not_know_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"shards={workspace.dataset}", f"out={tmp_path}", "wandb=true", *SMALL)
    with pytest.raises(InputError, match=r"wandb=true: .*was not tracked by W&B"):
        run_command("evaluate", f"run={workspace.run()}", *words)
    shutil.copytree(workspace.run(), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "run" / "config.yaml").write_text("tracking: {name: wandb, mode: auto}")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(InputError, match="wandb=true: WANDB_MODE"):
        run_command("evaluate", f"run={tmp_path / 'run'}", *words)
