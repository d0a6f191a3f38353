"""The whole way with codecs of other numbers than EnCodec: 12.5 or 86.13 frames per second, 2,048 codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.audio import audio_io
from pipeline.data.manifest import Manifest
from pipeline.data.shard import read_shard
from pipeline.data.storage import open_storage
from pipeline.data.verify import verify
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.preprocess_runs import HERE, tones
from tests.helpers.small_codecs import NUMBERS, small_model
from tests.helpers.trained_run import run_command

K = 3
SECONDS = 0.5  # of each sound; no whole number of frames of any codec here but DAC's at 16 kHz
SLOW = ["dac_16khz", "dac_24khz", "dac_44khz", "encodec_24khz", "encodec_32khz", "encodec_48khz"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["mimi", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_other_codecs_from_sounds_to_results(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rate, hop, size = NUMBERS[name].sample_rate, NUMBERS[name].hop_length, NUMBERS[name].codebook_size
    frames = math.ceil(SECONDS * rate / hop)
    weights, sounds = tmp_path / "weights", tones(tmp_path / "sounds", 16, SECONDS)
    shards, run = tmp_path / "shards", tmp_path / "run"
    small_model(name).save_pretrained(weights)
    codec = [f"codec={name}", f"codec.codebooks={K}", f"codec.weights_dir={weights}"]
    data = ["data=folder", f"data.root={sounds}", "data.valid=0.4", f"data.scan_cache_dir={tmp_path / 'scan'}"]
    assert not run_command("preprocess", *data, f"out={shards}", *codec, "embedder=encodecmae_tiny", *HERE)
    manifest = Manifest.load(shards)
    assert (manifest.frame_rate, manifest.codec["codebook_size"]) == (rate / hop, size)
    assert manifest.embedder["sample_rate"] == 24_000
    samples = [sample for file in sorted(shards.glob("*.tar")) for sample in read_shard(file)]
    assert {sample.codes.shape for sample in samples} == {(K, frames)}
    assert size // 4 < max(sample.codes.max() for sample in samples) < size

    embedder = pipeline.load_embedder("encodecmae_tiny")
    for sample in samples:  # the embedder hears the sound at its own rate
        wav = audio_io.read(sounds / sample.metadata["path"], rate=embedder.sample_rate)
        vector = embedder.embed(torch.from_numpy(wav)[None])[0].numpy()
        assert np.corrcoef(vector, sample.prompt)[0, 1] > 0.99
        assert sample.metadata["duration"] == pytest.approx(SECONDS, abs=1e-3)

    assert [*verify(open_storage(shards))] == []
    small = ["model=tiny", "model.width=32", "model.layers=1", "tracking=none", "trainer.micro_batch=4"]
    steps = ["trainer.steps=2", "trainer.val_every=2", "audio_samples.clips=1"]
    assert not run_command("train", f"shards={shards}", f"run={run}", f"data.seconds={SECONDS}", *codec, *small, *steps)
    assert f"{frames} frames ({frames * hop / rate:.2f} s, the longest clip)" in capfd.readouterr().out
    model = CodecGPT.from_pretrained(run / "export")
    assert model.config.codebook_size == size and model.head.weight.shape == (K, size + 1, 32)

    loaded = ["device=cpu", f"codec_weights={weights}"]
    prompt = sorted(sounds.iterdir())[0]
    run_command("generate", f"run={run}", f"prompt={prompt}", f"out={tmp_path / 'a.wav'}", "seconds=0.5", *loaded)
    wav, own_rate = soundfile.read(tmp_path / "a.wav")
    assert (len(wav), own_rate) == (round(0.5 * rate), rate)

    run_command("evaluate", f"run={run}", f"shards={shards}", "n=3", "resamples=10", "temperatures=[1.0]", *loaded)
    results = json.loads((run / "evaluation" / "evaluate.json").read_text())
    assert results["loss"]["uniform"]["nats"] == pytest.approx(math.log(size), abs=1e-3)
