"""Audio samples during training: always the same clips, and no effect on the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio import audio_io
from pipeline.audio.codecs import load_codec
from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardedDataset
from pipeline.generation.settings import sampling_settings
from pipeline.training.audio_samples import AudioSampler, build_audio_sampler
from tests.helpers.models import tiny
from tests.helpers.preprocess_runs import make, tones
from tests.helpers.training_caches import K, write_cache


@pytest.fixture(scope="module")
def audio_sampler(tmp_path_factory: pytest.TempPathFactory) -> AudioSampler:
    cache = write_cache(tmp_path_factory.mktemp("cache") / "cache", lengths=(12, 30))
    return AudioSampler(
        ShardedDataset(cache, "valid"), load_codec("encodec_embedded", K), 3, 0.24, [0.0, 1.0], sampling_settings()
    )


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
    settings = {"clips": 2, "seconds": 0.2, "temperatures": [1.0], "top_k": 0, "corpus_root": None}
    meta = {"name": "encodec_24khz", "codebooks": 4, "weights_dir": str(tmp_path)}
    assert build_audio_sampler(settings, meta, split, torch.device("cpu")) is None
    assert caplog.text.count("no audio samples will be generated") == 1
    embedded = {"name": "encodec_embedded", "codebooks": 4, "weights_dir": None}
    assert build_audio_sampler({**settings, "clips": 0}, embedded, split, torch.device("cpu")) is None
    audio_sampler = build_audio_sampler(settings, embedded, split, torch.device("cpu"))
    assert audio_sampler is not None and len(audio_sampler.sample(tiny())) == 2


def test_original_recordings_are_added_from_the_corpus(tmp_path: Path) -> None:
    corpus = tones(tmp_path / "tones", 6)
    assert make("folder", corpus, tmp_path / "cache", "data.valid=0.5", "data.test=0") == 0
    split = ShardedDataset(tmp_path / "cache", "valid")
    settings = {
        "clips": 2,
        "seconds": 0.1,
        "temperatures": [1.0],
        "top_k": 0,
        "corpus_root": str(tmp_path / "elsewhere"),
    }
    codec = {"name": "encodec_embedded", "codebooks": 2, "weights_dir": None}
    with pytest.raises(InputError, match="missing"):
        build_audio_sampler(settings, codec, split, torch.device("cpu"))
    audio_sampler = build_audio_sampler({**settings, "corpus_root": str(corpus)}, codec, split, torch.device("cpu"))
    assert audio_sampler is not None
    for (_, sounds), sample in zip(
        audio_sampler.sample(tiny(codebooks=2, prompt_dim=192)), audio_sampler.clips, strict=True
    ):
        assert list(sounds) == ["prompt", "reconstruction", "temperature 1"]
        assert np.array_equal(sounds["prompt"], audio_io.read(corpus / sample.metadata["path"], rate=24_000)[: 8 * 320])
