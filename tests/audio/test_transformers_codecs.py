"""Codecs give transformers' codes and waveforms for any batch, padding and chunk size; lengths for any frame rate."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.audio.codecs import CODECS, codec_settings, load_codec
from pipeline.audio.codecs.base import LONGEST_PIECE, Codec
from pipeline.common.errors import InputError
from tests.helpers.decode_stream import decode_stream
from tests.helpers.small_codecs import NUMBERS, codes_and_sound, small_model

DOCS = Path(__file__).parents[2] / "docs"
CAUSAL = {"encodec_24khz", "mimi"}
SOME = ["encodec_32khz", "mimi"]  # tests/audio/test_dac.py has DAC, test_codec.py EnCodec at 24 kHz


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codecs")


@cache
def load(name: str, root: Path) -> Codec:
    small_model(name).save_pretrained(root / name)
    return load_codec(name, 4, root / name)


@pytest.fixture(params=SOME)
def codec(request: pytest.FixtureRequest, root: Path) -> Codec:
    return load(request.param, root)


def noise(batch: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0))


def some_codes(codec: Codec, frames: int) -> Tensor:
    return torch.randint(0, codec.codebook_size, (2, 4, frames), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*SOME, "encodec_24khz"])
def test_codes_and_waveforms_equal_transformers(name: str, root: Path) -> None:
    """Also for clips that do not fill their last frame."""
    codec, hop = load(name, root), NUMBERS[name].hop_length
    for samples in (20 * hop, 20 * hop - 1, 7 * hop + hop // 3, 1):
        wav = noise(2, samples)
        expected, sound = codes_and_sound(name, wav, 4)
        codes = codec.encode(wav)
        assert codes.shape == expected.shape == (2, 4, -(-samples // hop))
        assert (codes == expected).float().mean() > 0.998
        torch.testing.assert_close(codec.decode(expected), sound, atol=1e-4, rtol=1e-4)
    expected, sound = codes_and_sound(name, noise(2, 20 * hop), 4)
    assert len(expected.unique()) > 80 and sound.std() > 0.01  # otherwise there is nothing to compare


def test_padded_batch_equals_single_encodes(codec: Codec) -> None:
    """Also where the padding has other values than zeros, and with rows of one sample."""
    hop = codec.hop_length
    lengths = torch.tensor([1, hop, 5 * hop + 1, 6 * hop, 6 * hop - 1, 6 * hop])
    wav = noise(len(lengths), 6 * hop)
    batch = codec.encode(wav, lengths)
    for row, length, codes in zip(wav, lengths.tolist(), batch, strict=True):
        single = codec.encode(row[None, :, :length])[0]
        assert single.shape[1] == -(-length // hop)
        assert (codes[:, : single.shape[1]] == single).float().mean() > 0.99


@pytest.mark.parametrize("sizes", [[24], [1] * 24, [3, 1, 12, 2, 6], [2]])
def test_streamed_decoding_equals_decode(codec: Codec, sizes: list[int]) -> None:
    codes = some_codes(codec, sum(sizes))
    chunks = list(decode_stream(codec, codes.split(sizes, dim=-1)))
    assert len(chunks) == len(sizes) or codec.name not in CAUSAL  # a causal codec delays nothing
    whole = codec.decode(codes)
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_long_clips_are_decoded_in_pieces(name: str, root: Path) -> None:
    codec = load(name, root)
    codes = some_codes(codec, LONGEST_PIECE + 5)
    whole = codec.decode_batch(codes)
    torch.testing.assert_close(codec.decode(codes), whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", [*SOME, "encodec_24khz"])
def test_only_causal_codecs_ignore_later_frames(name: str, root: Path) -> None:
    codec = load(name, root)
    codes = some_codes(codec, 16)
    other = codes.clone()
    other[..., 8:] = codes[..., 8:].flip(1)
    end = 8 * codec.hop_length
    before, after = codec.decode(codes)[..., :end], codec.decode(other)[..., :end]
    assert ((before - after).abs().max() < 1e-5 * before.abs().max()) == (name in CAUSAL)


@pytest.mark.parametrize("name", SOME)
def test_identity_has_the_codec_s_own_numbers(name: str, root: Path) -> None:
    codec, numbers = load(name, root), NUMBERS[name]
    assert (codec.sample_rate, codec.hop_length, codec.max_codebooks, codec.codebook_size) == numbers
    assert codec.identity["frame_rate"] == numbers.sample_rate / numbers.hop_length
    assert json.loads(json.dumps(codec.identity)) == codec.identity
    with pytest.raises(InputError, match=f"codec.codebooks={numbers.max_codebooks + 1}: expected a whole number"):
        load_codec(name, numbers.max_codebooks + 1, root / name)


def test_all_codebooks_are_encoded_and_fewer_are_a_prefix(root: Path) -> None:
    for name in SOME:
        few, wav = load(name, root), noise(1, 4 * NUMBERS[name].hop_length)
        codes = load_codec(name, NUMBERS[name].max_codebooks, root / name).encode(wav)
        assert codes.shape[1] == NUMBERS[name].max_codebooks and torch.equal(codes[:, :4], few.encode(wav))
        assert load_codec(name, 1, root / name).encode(wav).shape == (1, 1, 4)


def test_weights_of_another_model_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("mimi", root), load("encodec_32khz", root)
    with pytest.raises(InputError, match="damaged or of another model.*model_type 'mimi' in config.json"):
        load_codec("encodec_32khz", 4, root / "mimi")
    with pytest.raises(InputError, match="damaged or of another model.*sampling_rate is 32000 in config.json"):
        load_codec("encodec_24khz", 4, root / "encodec_32khz")
    content = (root / "mimi" / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((root / "mimi" / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content[:5000])
    with pytest.raises(InputError, match="damaged or of another model.*config.json and model.safetensors of a Mimi"):
        load_codec("mimi", 4, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://nowhere.invalid")
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for weights_dir, repository in ((None, "kyutai/mimi"), ("hub:somebody/mimi", "somebody/mimi")):
        with pytest.raises(InputError, match=f"hf download {repository} config.json.*codec=encodec_embedded needs no"):
            load_codec("mimi", 4, weights_dir)


def test_every_codec_of_transformers_is_tested() -> None:
    names = {name for name, settings in CODECS.items() if hasattr(settings, "repository")}
    assert names <= {*NUMBERS}


def test_table_of_codecs_in_the_docs_is_true() -> None:
    """Numbers and licences are those of the classes."""
    rows = {}
    for line in (DOCS / "preprocessing.md").read_text().splitlines():
        if match := re.match(r"\| `(\w+)` \| (\d+ \|.*) \|$", line):
            rows[match[1]] = match[2].split(" | ")
    assert {*rows} == {*CODECS.names()}
    numbers = NUMBERS | {"encodec_embedded": NUMBERS["encodec_24khz"]._replace(max_codebooks=8)}
    for name, (rate, frame_rate, codebooks, size, kbit, causal, licence) in rows.items():
        own, settings = numbers[name], CODECS.get(name)
        with pytest.raises(InputError, match=f"codec.codebooks=99: expected a whole number from 1 to {codebooks}"):
            codec_settings(name, 99)
        assert (int(rate), int(codebooks), int(size)) == (own.sample_rate, own.max_codebooks, own.codebook_size)
        exact = own.sample_rate / own.hop_length
        assert frame_rate == f"{exact:.4g}"
        assert kbit == f"{own.max_codebooks * exact * math.log2(own.codebook_size) / 1000:.4g}"
        assert causal == ("yes" if name in CAUSAL else "no") and licence in settings.licence


@pytest.mark.parametrize("name", ["encodec_24khz", "encodec_32khz", "mimi", "dac_44khz"])
def test_latents_are_sums_over_codebooks(name: str, root: Path) -> None:
    """Of a vector for each code, which depends on no other frame and on no other codebook."""
    codec = load(name, root)
    codes, others = some_codes(codec, 12)
    latents = [codec.latents(each[None, :count]) for each in (codes, others) for count in (1, 2, 4)]
    mixed = codec.latents(torch.cat([codes[:2], others[2:]])[None])
    torch.testing.assert_close(mixed, latents[1] + latents[5] - latents[4], atol=1e-4, rtol=1e-4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.latents(codes[None, :, order]), latents[2][..., order])
    assert latents[0].std() > 0 and (latents[1] - latents[0]).std() > 0
