"""`python -m pipeline.evaluate`: metrics against direct computation, wavs, and datasets that do not fit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from pipeline.audio import metrics
from pipeline.audio.codecs import load_codec
from pipeline.audio.embedders import load_embedder
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.storage import open_storage
from pipeline.evaluation.analyses.controlled_pitch import draw_pitches
from pipeline.generation.loaded_run import load_run
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.trained_run import Workspace, run_command

SMALL = ("n=3", "temperatures=[0,0.7]", "resamples=50")


@pytest.fixture(scope="module")
def evaluated(workspace: Workspace, nsynth_folder: Path) -> tuple[dict, Path]:
    """The content of an evaluate.json, and its folder."""
    out, corpus = workspace.root / "evaluated", f"corpus_root={nsynth_folder}"
    run_command("evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={out}", corpus, *SMALL)
    return json.loads((out / "evaluate.json").read_text()), out


def test_loss_is_mean_over_validation_clips(workspace: Workspace, evaluated: tuple[dict, Path]) -> None:
    model, valid = CodecGPT.from_pretrained(workspace.run() / "export"), ShardedDataset(workspace.dataset, "valid", 2)
    with torch.no_grad():
        parts = [model(b.codes, b.frames, {"prompt": b.prompts}) for b in iter_once(valid, 1)]
    nats, cells = sum(p[0] for p in parts), sum(p[1] for p in parts)
    losses = evaluated[0]["loss"]
    assert losses["clips"] == len(valid) and losses["model"]["nats_codebook"] == pytest.approx((nats / cells).tolist())
    assert losses["model"]["bits_second"] == pytest.approx(float((nats / cells).sum()) / math.log(2) * 75)
    assert losses["model"]["perplexity"][1] == pytest.approx(math.exp(losses["model"]["nats_codebook"][1]))
    assert losses["uniform"]["nats"] == pytest.approx(math.log(1024))


def test_unigram_baseline_counts_training_codes(workspace: Workspace, evaluated: tuple[dict, Path]) -> None:
    train, valid = (
        np.concatenate([b.codes[0].numpy() for b in iter_once(ShardedDataset(workspace.dataset, s, 2), 1)], 1)
        for s in ("train", "valid")
    )
    for k in (0, 1):
        counts = np.bincount(train[k], minlength=1024) + 1
        expected = -np.log(counts / counts.sum())[valid[k]].mean()
        assert evaluated[0]["loss"]["unigram"]["nats_codebook"][k] == pytest.approx(expected)


def test_ceiling_and_floor_are_reconstructions(workspace: Workspace, evaluated: tuple[dict, Path]) -> None:
    results, out = evaluated
    clips = list(sample_clips(open_storage(workspace.dataset), Manifest.load(workspace.dataset), 3, 0, "valid"))
    codec, embedder = load_codec("encodec_embedded", 2), load_embedder("encodecmae_tiny")
    reconstructions = [codec.decode(torch.from_numpy(clip.codes.astype(np.int64))[None])[0, 0] for clip in clips]
    vectors = np.stack([embedder.embed(wav[None])[0].numpy() for wav in reconstructions])
    prompts = np.stack([clip.prompt for clip in clips]).astype(np.float32)
    cosines = metrics.cosine(prompts[:, None], vectors[None])
    assert results["ceiling"]["fidelity"]["mean"] == pytest.approx(float(np.diagonal(cosines).mean()), abs=1e-3)
    others = (cosines.sum() - np.trace(cosines)) / 6
    assert results["floor"]["fidelity"]["mean"] == pytest.approx(float(others), abs=1e-3)
    is_correct = [
        abs(metrics.pitch(w.numpy(), 24_000) - c.metadata["labels"]["pitch"]) <= 0.5
        for w, c in zip(reconstructions, clips, strict=True)
    ]
    assert results["ceiling"]["pitch"]["mean"] == pytest.approx(np.mean(is_correct))
    for clip, wav in zip(clips, reconstructions, strict=True):
        written = soundfile.read(out / f"{clip.key}.codec.wav", dtype="float32")[0]
        assert np.allclose(written, wav.clip(-1, 1), atol=1e-4)


def test_originals_are_the_recordings(workspace: Workspace, evaluated: tuple[dict, Path], nsynth_folder: Path) -> None:
    """Their prompts are those of the dataset, and their pitch is tracked on the notes of the corpus."""
    clips = list(sample_clips(open_storage(workspace.dataset), Manifest.load(workspace.dataset), 3, 0, "valid"))
    wavs = [load_source_audio(str(nsynth_folder), clip.metadata, 24_000) for clip in clips]
    labels = [clip.metadata["labels"]["pitch"] for clip in clips]
    is_correct = [abs(metrics.pitch(wav, 24_000) - label) <= 0.5 for wav, label in zip(wavs, labels, strict=True)]
    originals = evaluated[0]["originals"]
    assert originals["pitch"]["mean"] == pytest.approx(np.mean(is_correct))
    assert originals["fidelity"]["mean"] > 0.999 > evaluated[0]["ceiling"]["fidelity"]["mean"]


def test_corpus_without_the_recordings_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    settings = (f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path / 'o'}", *SMALL)
    with pytest.raises(InputError, match=r"corpus_root=.*: 3 of 3 recordings cannot be read \(.*\): give the folder"):
        run_command("evaluate", *settings, f"corpus_root={tmp_path}")
    assert not (tmp_path / "o").exists()


def test_each_temperature_has_sounds_of_clip_length(evaluated: tuple[dict, Path]) -> None:
    results, out = evaluated
    assert set(results["temperatures"]) == {"0", "0.7"}
    for row in results["temperatures"].values():
        sets = {"distance", "kernel_distance", "different"}  # the limit of the distance needs more sounds
        assert {"fidelity", "pitch", "pitch_class", *sets, "silent", "looping"} == set(row)
        low, high = row["fidelity"]["interval"]
        assert low <= row["fidelity"]["mean"] <= high and row["fidelity"]["n"] == 3
    wavs = list(out.glob("*.wav"))
    assert len(wavs) == 9 and {soundfile.info(wav).frames for wav in wavs} == {9_600}
    greedy, sampled = (sorted(out.glob(f"*.{voice}.wav"))[0].read_bytes() for voice in ("t0", "t0.7"))
    assert greedy != sampled


def test_results_do_not_depend_on_the_batch(workspace: Workspace, evaluated: tuple[dict, Path], tmp_path: Path) -> None:
    results, out = evaluated
    run_command(
        "evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path}", *SMALL, "batch=2"
    )
    for wav in out.glob("*.wav"):
        assert (tmp_path / wav.name).read_bytes() == wav.read_bytes()
    again = json.loads((tmp_path / "evaluate.json").read_text())
    assert again["temperatures"] == results["temperatures"]


def test_results_and_output_folder_are_printed(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run = workspace.run("parallel")
    run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", "n=2", "temperatures=[1]", "pitch=false")
    out = capsys.readouterr().out
    for text in ("unigram", "uniform", "bits per second", "prompt fidelity", "temperature 1", "ceiling", "floor"):
        assert text in out
    assert f"sounds: {run}/evaluation/*.wav" in out and (run / "evaluation" / "evaluate.json").is_file()
    assert out.splitlines()[-1].startswith(f"next: python -m pipeline.report run={run}")
    assert "pitch" not in out


def test_controlled_pitch_requests_pitches_of_other_clips(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model with a pitch condition; figures follow from the definition for the codec, whose sounds are known."""
    pitch = {"kind": "number", "name": "pitch", "dropout": 0.0, "low": 21.0, "high": 108.0}
    run = workspace.run(conditions=[{"kind": "prompt", "name": "prompt", "dropout": 0.0}, pitch])
    small = ("n=4", "temperatures=[1]", "resamples=50", "sampling.guidance={prompt: 2, pitch: 1.5}", f"out={tmp_path}")
    run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", *small)
    results = json.loads((tmp_path / "evaluate.json").read_text())
    rows = results["analyses"]["controlled_pitch"]["rows"]
    assert [*rows] == [f"{control}, temperature 1" for control in ("prompt", "label", "both")] + ["ceiling (codec)"]
    for row in [*rows.values()][:3]:
        assert {"condition pitch", "prompt pitch"} == set(row)
        assert row["condition pitch"]["n"] == 3 and len(row["condition pitch"]["interval"]) == 2
    assert rows["ceiling (codec)"] == {"prompt pitch": results["ceiling"]["pitch"]}
    assert "controlled pitch" in capsys.readouterr().out
    labels = np.array([60.0, 60.0, 62.0, np.nan, 130.0])
    drawn = [draw_pitches(labels, load_run(run, "cpu"), seed) for seed in range(20)]
    assert {tuple(row[:2]) for row in drawn} == {(62.0, 62.0)} and {row[2] for row in drawn} == {60.0}
    assert all(np.isnan(row[3]) for row in drawn) and {row[4] for row in drawn} == {60.0, 62.0}


def test_one_clip_has_no_floor_and_no_distance(workspace: Workspace, tmp_path: Path) -> None:
    run_command(
        "evaluate",
        f"run={workspace.run()}",
        f"shards={workspace.dataset}",
        "n=1",
        "temperatures=[0.5]",
        f"out={tmp_path}",
    )
    results = json.loads((tmp_path / "evaluate.json").read_text())
    assert (
        results["floor"] == {}
        and "distance" not in results["ceiling"]
        and results["temperatures"]["0.5"]["fidelity"]["n"] == 1
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=test2"], "has no clips in test2: it has test, train, valid"),
        (["n=0"], "n=0: expected a whole number of 1 or more"),
        (["temperatures=[-1]"], r"temperatures=\[-1\]: expected a list, each a number of 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(workspace: Workspace, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command(
            "evaluate",
            f"run={workspace.run()}",
            f"shards={workspace.dataset}",
            f"out={workspace.root / 'none'}",
            *overrides,
        )


@pytest.mark.parametrize("part", ["codec", "embedder"])
def test_dataset_of_other_codec_or_embedder_is_refused(workspace: Workspace, tmp_path: Path, part: str) -> None:
    shutil.copytree(workspace.dataset, tmp_path / "cache")
    manifest = Manifest.load(tmp_path / "cache")
    getattr(manifest, part)["weights"] = "f" * 64
    manifest.save(tmp_path / "cache")
    with pytest.raises(InputError, match=f"{part}.weights is '{'f' * 64}', expected '.*'"):
        run_command("evaluate", f"run={workspace.run()}", f"shards={tmp_path / 'cache'}", f"out={tmp_path}", *SMALL)


def test_wandb_needs_a_tracked_run(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (f"shards={workspace.dataset}", f"out={tmp_path}", "wandb=true", *SMALL)
    with pytest.raises(InputError, match=r"wandb=true: .* was not tracked"):
        run_command("evaluate", f"run={workspace.run()}", *overrides)
    assert not list(tmp_path.iterdir()), "refused before the work"
    shutil.copytree(workspace.run(), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3}\n')
    settings = {"tracking": yaml.safe_load((CONF / "tracking" / "wandb.yaml").read_text())}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(InputError, match="wandb=true: .* turned off by tracking.mode, WANDB_MODE"):
        run_command("evaluate", f"run={tmp_path / 'run'}", *overrides)
