"""What is heard of a model while it trains: always the same clips, and the training as if nobody had listened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio import audio_io
from pipeline.audio.codecs import load_codec
from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardedDataset
from pipeline.generation.sampling import SamplingParams
from pipeline.training.audio_samples import AudioSampler, build_audio_sampler
from tests.helpers.models import tiny
from tests.helpers.preprocess_runs import make, tones
from tests.helpers.training_caches import K, write_cache


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> AudioSampler:
    cache = write_cache(tmp_path_factory.mktemp("cache") / "cache", lengths=(12, 30))
    return AudioSampler(
        ShardedDataset(cache, "valid"), load_codec("encodec_embedded", K), 3, 0.24, [0.0, 1.0], SamplingParams()
    )


def test_each_clip_has_its_reconstruction_and_a_sound_a_temperature(ears: AudioSampler) -> None:
    heard = ears.sample(tiny())
    assert len({key for key, _ in heard}) == 3
    for (_, sounds), codes in zip(heard, ears.codes, strict=True):
        assert list(sounds) == ["reconstruction", "temperature 0", "temperature 1"]
        assert codes.shape[1] <= 18, "0.24 s"
        assert {len(wav) for wav in sounds.values()} == {codes.shape[1] * 320}
        assert all(wav.dtype == np.float32 and np.isfinite(wav).all() for wav in sounds.values())


def test_the_same_model_is_heard_the_same_and_another_is_not(ears: AudioSampler) -> None:
    first, again, other = (ears.sample(tiny(seed)) for seed in (0, 0, 1))
    for (_, a), (_, b), (_, c) in zip(first, again, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
        assert np.array_equal(a["reconstruction"], c["reconstruction"])
        assert not np.array_equal(a["temperature 1"], c["temperature 1"])


def test_listening_changes_nothing_of_training(ears: AudioSampler) -> None:
    model = tiny(dropout=0.5)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    ears.sample(model)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)), "no random number of training's is used up"
    assert model.training and all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_the_codec_s_weights_training_goes_on_unheard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = ShardedDataset(write_cache(tmp_path / "cache"), "valid")
    listen = {"clips": 2, "seconds": 0.2, "temperatures": [1.0], "top_k": 0, "corpus_root": None}
    meta = {"name": "encodec_24khz", "codebooks": 4, "weights_dir": str(tmp_path)}
    assert build_audio_sampler(listen, meta, split, torch.device("cpu")) is None
    assert caplog.text.count("no audio samples will be generated") == 1
    embedded = {"name": "encodec_embedded", "codebooks": 4, "weights_dir": None}
    assert build_audio_sampler({**listen, "clips": 0}, embedded, split, torch.device("cpu")) is None
    ears = build_audio_sampler(listen, embedded, split, torch.device("cpu"))
    assert ears is not None and len(ears.sample(tiny())) == 2


def test_where_the_corpus_is_at_hand_its_recordings_are_beside(tmp_path: Path) -> None:
    corpus = tones(tmp_path / "tones", 6)
    assert make("folder", corpus, tmp_path / "cache", "data.valid=0.5", "data.test=0") == 0
    split = ShardedDataset(tmp_path / "cache", "valid")
    listen = {"clips": 2, "seconds": 0.1, "temperatures": [1.0], "top_k": 0, "corpus_root": str(tmp_path / "elsewhere")}
    codec = {"name": "encodec_embedded", "codebooks": 2, "weights_dir": None}
    with pytest.raises(InputError, match="missing"):
        build_audio_sampler(listen, codec, split, torch.device("cpu"))
    ears = build_audio_sampler({**listen, "corpus_root": str(corpus)}, codec, split, torch.device("cpu"))
    assert ears is not None
    for (_, sounds), sample in zip(ears.sample(tiny(codebooks=2, prompt_dim=192)), ears.clips, strict=True):
        assert list(sounds) == ["prompt", "reconstruction", "temperature 1"]
        assert np.array_equal(sounds["prompt"], audio_io.read(corpus / sample.metadata["path"])[: 8 * 320])
