"""The stereo EnCodec: transformers' codes of clips as one piece, at any level, in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.codecs.encodec_48khz import LEVEL
from pipeline.common.errors import InputError
from tests.helpers.small_codecs import small_encodec_48khz

NAME, K = "encodec_48khz", 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small_encodec_48khz().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return load_codec(NAME, K, folder)


def noise(*shape: int) -> Tensor:
    wav = 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return wav * torch.linspace(0, 1, shape[-1])


@torch.inference_mode()
def test_codes_equal_transformers_without_chunks(codec: Codec) -> None:
    """Also for clips that do not fill their last frame, and of more than a second; the level differs only."""
    model = codec.model  # type: ignore[attr-defined]
    for samples in (320 * 200, 5000, 320, 1):
        wav = noise(2, 2, samples)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.config, "chunk_length_s", None)
            encoded = model.encode(wav, bandwidth=6.0)
            sound = model.decode(encoded.audio_codes, [None]).audio_values
        codes, expected = codec.encode(wav), encoded.audio_codes[0]
        assert codes.shape == expected.shape == (2, K, -(-samples // 320))
        assert (codes == expected).float().mean() > 0.998
        torch.testing.assert_close(codec.decode(expected), LEVEL * sound, atol=1e-5, rtol=1e-4)
    assert len(codec.encode(noise(1, 2, 320 * 200)).unique()) > 80


def test_level_and_padding_change_no_codes(codec: Codec) -> None:
    wav = noise(3, 2, 3200)
    codes = codec.encode(wav)
    assert (codec.encode(0.1 * wav) == codes).float().mean() > 0.99
    batch = codec.encode(wav, torch.tensor([3200, 1000, 321]))
    for row, length in enumerate((3200, 1000, 321)):
        single = codec.encode(wav[row : row + 1, :, :length])[0]
        assert (batch[row, :, : single.shape[1]] == single).float().mean() > 0.99
    swapped = codec.encode(wav.flip(1))
    assert (swapped != codes).float().mean() > 0.1  # each side has a part in the codes


def test_streamed_decoding_equals_decode(codec: Codec) -> None:
    """Each frame depends on all others, so everything is decoded at the end."""
    codes = torch.randint(0, 1024, (1, K, 20), generator=torch.Generator().manual_seed(0))
    decoder = codec.streaming_decoder()
    assert decoder.push(codes[..., :7]).shape == (1, 2, 0) and decoder.push(codes[..., 7:]).shape == (1, 2, 0)
    torch.testing.assert_close(decoder.flush(), codec.decode(codes))


def test_identity_has_two_channels_and_own_streams(codec: Codec, folder: Path) -> None:
    assert codec.identity["channels"] == 2 and codec.identity["codebooks"] == codec.codebooks == K
    assert (codec.frame_rate, codec.max_codebooks, codec.streams_per_codebook) == (150, 16, 1)
    with pytest.raises(InputError, match="codec.channels=1: expected 2"):
        load_codec(NAME, K, folder, channels=1)
