"""Audio samples during training: always the same clips, and no effect on the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio import audio_io
from pipeline.audio.codecs import CodecSettings
from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings
from pipeline.data.dataloader import ShardedDataset
from pipeline.training.audio_samples import AudioSampler, build_audio_sampler
from pipeline.training.settings import AudioSamplesSettings, TrainSettings
from tests.helpers.models import tiny
from tests.helpers.preprocess_runs import make, tones
from tests.helpers.training_caches import K, write_cache


def settings(
    clips: int, seconds: float, temperatures: list[float], corpus_root: str | None = None
) -> AudioSamplesSettings:
    return AudioSamplesSettings(
        clips=clips, seconds=seconds, temperatures=temperatures, top_k=0, corpus_root=corpus_root
    )


def codec(name: str, *overrides: str) -> CodecSettings:
    return load_settings(TrainSettings, [f"codec={name}", *overrides]).codec


@pytest.fixture(scope="module")
def audio_sampler(tmp_path_factory: pytest.TempPathFactory) -> AudioSampler:
    cache = write_cache(tmp_path_factory.mktemp("cache") / "cache", lengths=(12, 30))
    embedded = codec("encodec_embedded", f"codec.codebooks={K}").load("cpu")
    return AudioSampler(ShardedDataset(cache, "valid"), embedded, settings(3, 0.24, [0.0, 1.0]))


def test_each_clip_has_a_reconstruction_and_samples(audio_sampler: AudioSampler) -> None:
    samples = audio_sampler.sample(tiny())
    assert len({key for key, _ in samples}) == 3
    for (_, sounds), codes in zip(samples, audio_sampler.codes, strict=True):
        assert list(sounds) == ["reconstruction", "temperature 0", "temperature 1"]
        assert codes.shape[1] <= 18, "0.24 s"
        assert {len(wav) for wav in sounds.values()} == {codes.shape[1] * 320}
        assert all(wav.dtype == np.float32 and np.isfinite(wav).all() for wav in sounds.values())


def test_samples_depend_on_the_model_only(audio_sampler: AudioSampler) -> None:
    first, again, other = (audio_sampler.sample(tiny(seed)) for seed in (0, 0, 1))
    for (_, a), (_, b), (_, c) in zip(first, again, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
        assert np.array_equal(a["reconstruction"], c["reconstruction"])
        assert not np.array_equal(a["temperature 1"], c["temperature 1"])


def test_sampling_does_not_change_the_training(audio_sampler: AudioSampler) -> None:
    model = tiny(dropout=0.5)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    audio_sampler.sample(model)
    random = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(random, torch.rand(3)), "the random generator of training is unchanged"
    assert model.training and all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_codec_weights_disable_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = ShardedDataset(write_cache(tmp_path / "cache"), "valid")
    two, cpu = settings(2, 0.2, [1.0]), torch.device("cpu")
    missing = codec("encodec_24khz", "codec.codebooks=4", f"codec.weights_dir='{tmp_path}'")
    assert build_audio_sampler(two, missing, split, cpu) is None
    assert caplog.text.count("no audio samples will be generated") == 1
    embedded = codec("encodec_embedded", "codec.codebooks=4")
    assert build_audio_sampler(settings(0, 0.2, [1.0]), embedded, split, cpu) is None
    audio_sampler = build_audio_sampler(two, embedded, split, cpu)
    assert audio_sampler is not None and len(audio_sampler.sample(tiny())) == 2


def test_original_recordings_are_added_from_the_corpus(tmp_path: Path) -> None:
    corpus = tones(tmp_path / "tones", 6)
    assert make("folder", corpus, tmp_path / "cache", "data.valid=0.5", "data.test=0") == 0
    split = ShardedDataset(tmp_path / "cache", "valid")
    embedded, cpu = codec("encodec_embedded", "codec.codebooks=2"), torch.device("cpu")
    with pytest.raises(InputError, match="missing"):
        build_audio_sampler(settings(2, 0.1, [1.0], str(tmp_path / "elsewhere")), embedded, split, cpu)
    audio_sampler = build_audio_sampler(settings(2, 0.1, [1.0], str(corpus)), embedded, split, cpu)
    assert audio_sampler is not None
    for (_, sounds), sample in zip(
        audio_sampler.sample(tiny(codebooks=2, prompt_dim=192)), audio_sampler.clips, strict=True
    ):
        assert list(sounds) == ["prompt", "reconstruction", "temperature 1"]
        assert np.array_equal(sounds["prompt"], audio_io.read(corpus / sample.metadata["path"], rate=24_000)[: 8 * 320])
