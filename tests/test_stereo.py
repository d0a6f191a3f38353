"""Two channels from sound files through a dataset and a model to sounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.audio import audio_io
from pipeline.audio.amplitude import mix_sound, split_stereo
from pipeline.audio.codecs.stereo import interleave, separate
from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, read_shard
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.preprocess_runs import make
from tests.helpers.trained_run import run_command

RATE, SECONDS, K = 24_000, 0.4, 2
CODEC = ("codec.channels=2", f"codec.codebooks={K}")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones on the left, on the right, in antiphase, on both sides, of one channel and of six."""
    folder = tmp_path_factory.mktemp("stereo") / "sounds"
    folder.mkdir()
    time = np.arange(round(RATE * SECONDS)) / RATE
    for i in range(10):
        tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (i / 4) * time).astype(np.float32)
        zero = np.zeros_like(tone)
        kinds = {
            "left": [tone, zero], "right": [zero, tone], "anti": [tone, -tone], "mono": [tone],
            "six": [tone, zero, zero, zero, zero, zero],
        }  # fmt: skip
        name = [*kinds][i % len(kinds)]
        soundfile.write(folder / f"{name}{i}.wav", np.stack(kinds[name], axis=1), RATE, "FLOAT")
    return folder


@pytest.fixture(scope="module")
def shards(sounds: Path) -> Path:
    out = sounds.parent / "shards"
    assert make("folder", sounds, out, "data.valid=0.3", "data.test=0", *CODEC) == 0
    return out


def samples(folder: Path) -> list[Sample]:
    return [sample for file in sorted(folder.glob("*.tar")) for sample in read_shard(file)]


def test_separate_inverts_interleave() -> None:
    codes = torch.arange(6 * 4 * 5).view(6, 4, 5)  # left and right of 3 clips, 4 codebooks
    assert torch.equal(separate(interleave(codes)), codes)
    assert torch.equal(interleave(codes)[0, :, 0], torch.stack([codes[0, :, 0], codes[1, :, 0]], 1).flatten())
    assert torch.equal(interleave(codes)[:, :4], interleave(codes[:, :2]))  # fewer codebooks are the first streams


def test_channels_are_those_of_the_mono_codec() -> None:
    """Also in padded batches, chunk by chunk, and from fewer codebooks."""
    mono, stereo = (pipeline.load_codec("encodec_embedded", 3, channels=channels) for channels in (1, 2))
    wav = 0.3 * torch.randn(2, 2, 3000, generator=torch.Generator().manual_seed(0))
    codes = stereo.encode(wav, torch.tensor([3000, 1500]))
    assert codes.shape == (2, 6, 10)
    for side in (0, 1):
        assert torch.equal(codes[0, side::2], mono.encode(wav[:1, side : side + 1])[0])
        assert torch.equal(codes[1, side::2, :5], mono.encode(wav[1:, side : side + 1, :1500])[0])
        assert torch.allclose(stereo.decode(codes[:, :4])[:, side], mono.decode(codes[:, side:4:2])[:, 0], atol=1e-5)
    latents = [mono.latents(codes[:, side::2]) for side in (0, 1)]
    assert torch.equal(stereo.latents(codes), torch.cat(latents, 1))
    decoder = stereo.streaming_decoder()
    parts = [decoder.push(part) for part in codes.split(3, dim=-1)] + [decoder.flush()]
    assert torch.allclose(torch.cat(parts, -1), stereo.decode(codes), atol=1e-5)
    assert stereo.streaming_decoder().flush().shape == (1, 2, 0)
    with pytest.raises(InputError, match="even number"):
        stereo.decode(codes[:, :3])
    assert stereo.identity == {**mono.identity, "codebooks": 6, "channels": 2} and "channels" not in mono.identity


def test_mono_mix_of_stereo_is_the_mean_of_all_channels() -> None:
    for channels in (1, 2, 3, 6):
        block = np.random.default_rng(channels).normal(size=(50, channels)).astype(np.float32)
        assert np.allclose(split_stereo(block).mean(1), block.mean(1), atol=1e-6)
    assert np.array_equal(split_stereo(block[:, :2]), block[:, :2])
    left = block[:, 0]
    assert np.array_equal(mix_sound(np.stack([left, -left], 1)), left)  # as of a mono dataset


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_segments_equal_those_of_the_whole_file(sounds: Path, rate: int) -> None:
    file = sounds / "left0.wav"
    whole = audio_io.read(file, rate=rate, channels=2)
    assert whole.shape == (rate * SECONDS, 2) and np.abs(whole[:, 1]).max() == 0
    (cut,) = audio_io.read_segments(file, [(0.1, 0.2)], rate=rate, channels=2)
    assert np.array_equal(cut, whole[round(0.1 * rate) : round(0.3 * rate)])
    assert np.allclose(mix_sound(whole), audio_io.read(file, rate=rate), atol=1e-6)


def test_sounds_keep_their_side_in_a_dataset(sounds: Path, shards: Path) -> None:
    manifest = Manifest.load(shards)
    assert (manifest.channels, manifest.codebooks) == (2, 2 * K)
    codec = pipeline.load_codec("encodec_embedded", K, channels=2)
    embedder = pipeline.load_embedder("encodecmae_tiny")
    clips = samples(shards)
    assert {sample.codes.shape[0] for sample in clips} == {2 * K} and len(clips) == 10
    for sample in clips:
        wav = codec.decode_clip(torch.from_numpy(sample.codes.astype(np.int64)))
        loud = np.abs(wav).max(axis=0) > 0.05
        name = sample.metadata["path"].rstrip("0123456789.wav")
        expected = {"right": [False, True], "anti": [True, True], "mono": [True, True]}.get(name, [True, False])
        assert loud.tolist() == expected, name
        mono = audio_io.read(sounds / sample.metadata["path"], rate=RATE, on_fault=lambda fault: None)
        vector = embedder.embed(torch.from_numpy(mono)[None])[0].numpy()
        assert np.allclose(vector, sample.prompt, atol=0.02)


@pytest.mark.slow
def test_workers_write_same_bytes_as_one_process(sounds: Path, shards: Path, tmp_path: Path) -> None:
    settings = ("data.valid=0.3", "data.test=0", *CODEC, "decode_workers=1")
    assert make("folder", sounds, tmp_path / "out", *settings) == 0
    ours, theirs = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in (tmp_path / "out", shards))
    assert ours == theirs


def test_prepared_clips_are_trimmed_and_levelled(sounds: Path, tmp_path: Path) -> None:
    settings = ("prepare.trim=true", "prepare.loudness=-23", "prepare.min_sound=0.1")
    assert make("folder", sounds, tmp_path / "out", "data.test=0", *CODEC, *settings) == 0
    gains = {sample.metadata["path"][:3]: sample.metadata["gain_db"] for sample in samples(tmp_path / "out")}
    assert gains["mon"] == pytest.approx(gains["lef"] - 3.01, abs=0.6)  # two equal channels are 3 dB louder


@pytest.mark.usefixtures("here")
def test_from_training_to_results(sounds: Path, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["model=tiny", "model.width=32", "model.layers=1", "tracking=none", "trainer.micro_batch=4"]
    steps = ["trainer.steps=2", "trainer.val_every=2", "audio_samples.clips=1", f"shards={shards}"]
    codec = ["codec=encodec_embedded", *CODEC]
    with pytest.raises(InputError, match=r"codec.channels is 2, expected 1"):
        run_command("train", f"run={run}", *small, *steps, "codec=encodec_embedded", f"codec.codebooks={K}")
    assert not run_command("train", f"run={run}", *small, *steps, *codec)
    assert CodecGPT.from_pretrained(run / "export").config.codebooks == 2 * K
    assert {soundfile.info(file).channels for file in run.glob("audio_samples/*/*.wav")} == {2}

    prompt, loaded = sounds / "left0.wav", [f"run={run}", "device=cpu"]
    for stream in ("false", "true"):
        out = tmp_path / f"{stream}.wav"
        run_command("generate", *loaded, f"prompt={prompt}", f"out={out}", "seconds=0.3", f"stream={stream}")
    at_once, streamed = (soundfile.read(tmp_path / f"{stream}.wav")[0] for stream in ("false", "true"))
    assert at_once.shape == (0.3 * RATE, 2) and np.allclose(at_once, streamed, atol=1e-4)
    run_command("generate", *loaded, f"from={tmp_path / 'false.json'}", f"out={tmp_path / 'again.wav'}")
    assert np.array_equal(soundfile.read(tmp_path / "again.wav")[0], at_once)
    for mode in (f"mode=extend audio={prompt}", f"mode=interpolate prompt=[{prompt},{sounds / 'mono3.wav'}] steps=2"):
        run_command("generate", *loaded, *mode.split(" "), f"out={tmp_path / 'm.wav'}", "seconds=0.5")
        assert soundfile.info(tmp_path / "m.wav").channels == 2

    audio = pipeline.load_run(run, "cpu").generate(prompt=soundfile.read(prompt)[0], rate=RATE, seconds=0.3)
    assert audio.samples.shape == (0.3 * RATE, 2)
    out = tmp_path / "evaluated"
    run_command("evaluate", *loaded, f"shards={shards}", f"out={out}", "n=3", "temperatures=[1]", "resamples=20")
    assert json.loads((out / "evaluate.json").read_text())["ceiling"]["fidelity"]["mean"] > 0.3
    assert {soundfile.info(file).channels for file in out.glob("*.wav")} == {2}
