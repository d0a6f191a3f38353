"""The whole way with a codec that has no number in common with EnCodec: 44.1 kHz, 86.13 Hz, 2,048 codes."""

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
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.dac_folder import write_dac
from tests.helpers.preprocess_runs import HERE, tones
from tests.helpers.trained_run import run_command

RATE, HOP, SIZE, K = 44_100, 512, 2048, 3
SECONDS = 0.6  # of each sound
FRAMES = math.ceil(SECONDS * RATE / HOP)


@pytest.mark.usefixtures("here")
def test_a_codec_of_other_numbers_from_sounds_to_results(tmp_path: Path) -> None:
    weights, sounds = tmp_path / "dac", tones(tmp_path / "sounds", 16, SECONDS)
    shards, run = tmp_path / "shards", tmp_path / "run"
    write_dac(weights, codebook_size=SIZE)
    codec = ["codec=dac_44khz", f"codec.codebooks={K}", f"codec.weights_dir={weights}"]
    data = ["data=folder", f"data.root={sounds}", "data.valid=0.4", f"data.scan_cache_dir={tmp_path / 'scan'}"]
    assert not run_command("preprocess", *data, f"out={shards}", *codec, "embedder=encodecmae_tiny", *HERE)
    manifest = Manifest.load(shards)
    assert (manifest.frame_rate, manifest.codec["codebook_size"]) == (RATE / HOP, SIZE)
    assert manifest.embedder["sample_rate"] == 24_000
    samples = [sample for file in sorted(shards.glob("*.tar")) for sample in read_shard(file)]
    assert {sample.codes.shape for sample in samples} == {(K, FRAMES)}
    assert 1024 < max(sample.codes.max() for sample in samples) < SIZE

    embedder = pipeline.load_embedder("encodecmae_tiny")
    for sample in samples:  # the embedder hears the sound at its own rate
        wav = audio_io.read(sounds / sample.metadata["path"], rate=embedder.sample_rate)
        vector = embedder.embed(torch.from_numpy(wav)[None])[0].numpy()
        assert np.corrcoef(vector, sample.prompt)[0, 1] > 0.99
        assert sample.metadata["duration"] == pytest.approx(SECONDS, abs=1e-3)

    small = ["model=tiny", "model.width=32", "model.layers=1", "tracking=none", "trainer.micro_batch=4"]
    steps = ["trainer.steps=2", "trainer.val_every=2", "audio_samples.clips=1"]
    assert not run_command("train", f"shards={shards}", f"run={run}", *codec, *small, *steps)
    model = CodecGPT.from_pretrained(run / "export")
    assert model.config.codebook_size == SIZE and model.head.weight.shape == (K, SIZE + 1, 32)

    loaded = ["device=cpu", f"codec_weights={weights}"]
    prompt = sorted(sounds.iterdir())[0]
    run_command("generate", f"run={run}", f"prompt={prompt}", f"out={tmp_path / 'a.wav'}", "seconds=0.5", *loaded)
    wav, rate = soundfile.read(tmp_path / "a.wav")
    assert (len(wav), rate) == (round(0.5 * RATE), RATE)

    run_command("evaluate", f"run={run}", f"shards={shards}", "n=3", "resamples=10", "temperatures=[1.0]", *loaded)
    results = json.loads((run / "evaluation" / "evaluate.json").read_text())
    assert results["loss"]["uniform"]["nats"] == pytest.approx(math.log(SIZE), abs=1e-3)
