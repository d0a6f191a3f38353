"""DAC gives transformers' codes and waveforms for any batch, padding and chunk size."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import LONGEST_PIECE, Codec
from pipeline.common.errors import InputError
from tests.helpers.dac_folder import small_dac, write_dac
from tests.helpers.decode_stream import decode_stream

SIZES = {
    "dac_44khz": {"sampling_rate": 44_100, "n_codebooks": 9},
    "dac_24khz": {"sampling_rate": 24_000, "n_codebooks": 32, "downsampling_ratios": [2, 4, 5, 8]},
    "dac_16khz": {"sampling_rate": 16_000, "n_codebooks": 12, "downsampling_ratios": [2, 4, 5, 8]},
}
RATES = {"dac_44khz": 44_100 / 512, "dac_24khz": 75, "dac_16khz": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dac")
    for name, sizes in SIZES.items():
        write_dac(root / name, **sizes)
    return root


@pytest.fixture(params=sorted(SIZES))
def codec(request: pytest.FixtureRequest, folder: Path) -> Codec:
    return load_codec(request.param, 7, folder / request.param)


@cache
def transformers_model(name: str) -> torch.nn.Module:
    return small_dac(**SIZES[name])


def noise(batch: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_codes_and_waveforms_equal_transformers(codec: Codec) -> None:
    model, wav = transformers_model(codec.name), noise(2, 40 * codec.hop_length)
    expected = model.encode(wav, n_quantizers=7).audio_codes
    assert len(expected.unique()) > 200  # otherwise there is nothing to compare
    codes = codec.encode(wav)
    assert codes.shape == (2, 7, 40) and (codes == expected).float().mean() > 0.998
    sound = model.decode(audio_codes=expected).audio_values
    decoded = codec.decode(expected)[:, 0]
    assert decoded.shape == (2, 40 * codec.hop_length) and sound.std() > 0.1
    torch.testing.assert_close(decoded[:, : sound.shape[1]], sound, atol=1e-5, rtol=1e-4)
    assert decoded.shape[1] - sound.shape[1] < 10


@torch.inference_mode()
def test_long_clips_are_decoded_in_pieces(folder: Path) -> None:
    """So that the memory is bounded; the samples are the same."""
    codes = torch.randint(0, 1024, (1, 2, 2 * LONGEST_PIECE + 5), generator=torch.Generator().manual_seed(0))
    expected = transformers_model("dac_44khz").decode(audio_codes=codes).audio_values
    decoded = load_codec("dac_44khz", 2, folder / "dac_44khz").decode(codes)[:, 0]
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-4)


def test_identity_has_the_codec_s_own_numbers(codec: Codec) -> None:
    assert codec.identity["frame_rate"] == RATES[codec.name] == codec.sample_rate / codec.hop_length
    assert type(codec.frame_rate) is (float if codec.name == "dac_44khz" else int)
    assert (codec.max_codebooks, codec.codebook_size) == (SIZES[codec.name]["n_codebooks"], 1024)


def test_padded_batch_equals_single_encodes(codec: Codec) -> None:
    """Also where the padding has other values than zeros, and with rows of one sample."""
    hop = codec.hop_length
    lengths = torch.tensor([1, hop, 5 * hop + 1, 6 * hop, 6 * hop - 1, 9 * hop + 77])
    wav = noise(len(lengths), 9 * hop + 77)
    batch = codec.encode(wav, lengths)
    for row, length, codes in zip(wav, lengths.tolist(), batch, strict=True):
        single = codec.encode(row[None, :, :length])[0]
        assert single.shape[1] == -(-length // hop)
        assert (codes[:, : single.shape[1]] == single).float().mean() > 0.998


@pytest.mark.parametrize("sizes", [[70], [1] * 40, [3, 1, 30, 20, 16], [12, 12]])
def test_streamed_decoding_equals_decode(codec: Codec, sizes: list[int]) -> None:
    codes = torch.randint(0, 1024, (2, 7, sum(sizes)), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(codes)
    chunks = list(decode_stream(codec, codes.split(sizes, dim=-1)))
    assert len(chunks) > 1 or len(sizes) == 1
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole, atol=1e-5, rtol=1e-4)


def test_missing_and_damaged_weights_are_errors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"codec.weights_dir=.*no config.json in it; `hf download descript/dac_44khz"):
        load_codec("dac_44khz", 9, tmp_path)
    write_dac(tmp_path, **SIZES["dac_44khz"])
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:5000])
    with pytest.raises(InputError, match=r"damaged or of another model.*config.json and model.safetensors"):
        load_codec("dac_44khz", 9, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(InputError) as caught:
        load_codec("dac_44khz", 9)
    for part in ("codec=dac_44khz: config.json", "hf download descript/dac_44khz", "codec=encodec_embedded needs no"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="codec.codebooks=10: expected a whole number from 1 to 9"):
        load_codec("dac_44khz", 10, folder / "dac_44khz")
    write_dac(tmp_path, **SIZES["dac_44khz"] | {"n_codebooks": 4})
    with pytest.raises(InputError, match="codec.codebooks=9: dac_44khz has 1 to 4 codebooks"):
        load_codec("dac_44khz", 9, tmp_path)
