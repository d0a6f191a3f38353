"""Codecs give the codes of the `encodec` package for any batch, padding, chunk size and precision settings."""

from __future__ import annotations

import hashlib
import math
import urllib.error
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.audio.codecs import encodec_24khz, load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.codecs.encodec_24khz import META_FILE
from pipeline.common.errors import InputError
from pipeline.common.paths import ASSETS
from tests.helpers.decode_stream import decode_stream
from tests.helpers.untrained_codec import untrained_codec, untrained_encodec

SAMPLES = 24_000


def sounds(batch: int, samples: int, seed: int = 0) -> Tensor:
    """Decaying harmonic tones with a little noise: [B, 1, S]."""
    random = np.random.default_rng(seed)
    t = np.arange(samples) / 24_000
    rows = []
    for _ in range(batch):
        pitch = random.uniform(100, 800)
        tone = sum(np.sin(2 * np.pi * pitch * h * t + h) * np.exp(-2 * t * h) / h for h in range(1, 9))
        rows.append(0.2 * tone + random.normal(size=samples) * 0.003)
    return torch.from_numpy(np.stack(rows)[:, None].astype(np.float32))


def share_equal(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a == b).float().mean().item()


@cache
def codec_named(name: str) -> Codec:
    return untrained_codec(8) if name == "untrained" else load_codec(name, 8)


@pytest.fixture
def seanet() -> Codec:
    return codec_named("untrained")


@pytest.fixture
def embedded() -> Codec:
    return codec_named("encodec_embedded")


@pytest.fixture(params=["untrained", "encodec_embedded"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return codec_named(request.param)


@pytest.mark.parametrize("samples", [320, 6 * 320, 8 * 320 - 1, 35_001])
def test_codes_equal_the_package(seanet: Codec, samples: int) -> None:
    """Except for float ties."""
    package = untrained_encodec()
    package.set_target_bandwidth(6.0)
    wav = sounds(2, samples)
    with torch.inference_mode():
        ((expected, _),) = package.encode(wav)
        assert len(expected.unique()) > min(100, samples // 320)  # otherwise there is nothing to compare
        assert share_equal(seanet.encode(wav), expected) > 0.998
        sound = package.decode([(expected, None)])
    torch.testing.assert_close(seanet.decode(expected), sound, atol=1e-5, rtol=1e-4)


SHORT = range(1, 7 * 320, 37)  # up to the frames that the start is reflected from
EVERY_RESIDUE = range(7 * 320, 8 * 320)  # all remainders modulo the strides 2, 4, 5 and 8


@pytest.mark.parametrize(("codebooks", "step"), [(8, 7), pytest.param(32, 1, marks=pytest.mark.slow)])
def test_partial_last_frame_equals_the_package(codebooks: int, step: int) -> None:
    """Each clip of a batch is reflected at its own end, as in the package and in transformers."""
    package, codec = untrained_encodec(), untrained_codec(codebooks)
    package.set_target_bandwidth(0.75 * codebooks)
    lengths = [*SHORT[::step], *EVERY_RESIDUE[::step]]
    wav = sounds(len(lengths), max(lengths)) + 0.1 * torch.randn(len(lengths), 1, max(lengths))
    result = codec.encode(wav, torch.tensor(lengths))
    odd = total = 0
    with torch.inference_mode():
        for row, own, codes in zip(wav, lengths, result, strict=True):
            ((expected, _),) = package.encode(row[None, :, :own])
            assert expected.shape == (1, codebooks, -(-own // 320))
            odd += int((codes[:, : expected.shape[2]] != expected[0]).sum())
            total += expected.numel()
    assert odd <= 1e-3 * total


def test_gpu_code_path_equals_the_package() -> None:
    """On a GPU the layers process the complete batch together."""
    package, encoder = untrained_encodec().encoder, codec_named("untrained").model.encoder
    lengths = [1, 37, 321, 6 * 320 + 1, 7 * 320, 2311, 2402, 2555, 2559, 2560]
    wav = sounds(len(lengths), 2560)
    with torch.inference_mode():
        silent = wav.where(torch.arange(2560) < torch.tensor(lengths)[:, None, None], 0)
        result = encoder._forward_batch(silent.transpose(1, 2), lengths).transpose(1, 2)  # type: ignore[operator]
        for row, own, latents in zip(wav, lengths, result, strict=True):
            expected = package(row[None, :, :own])[0]
            torch.testing.assert_close(latents[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-4)


ODD = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e29": 1e29, "1e38": 3e38, "denormal": 1e-42, "zero": 0.0,
}  # fmt: skip


@settings(max_examples=15)
@given(
    neighbours=st.lists(st.tuples(st.sampled_from(sorted(ODD)), st.integers(1, 1500)), min_size=1, max_size=4),
    own=st.integers(1, 2000),
    row=st.integers(0, 4),
    name=st.sampled_from(["untrained", "encodec_embedded"]),
)
def test_codes_are_independent_of_the_batch(neighbours: list[tuple[str, int]], own: int, row: int, name: str) -> None:
    """Bit for bit, for any other clips and any padding."""
    lengths = [length for _, length in neighbours]
    row = min(row, len(lengths))
    lengths.insert(row, own)
    usual = sounds(len(lengths), 2000)
    odd = usual.clone()
    for other, (kind, length) in zip([b for b in range(len(lengths)) if b != row], neighbours, strict=True):
        odd[other, 0, length // 2 :] = ODD[kind]
    odd[row, 0, own:] = math.nan
    codec = codec_named(name)
    expected = codec.encode(usual, torch.tensor(lengths))[row, :, : codec.num_frames(own)]
    result = codec.encode(odd, torch.tensor(lengths))[row, :, : codec.num_frames(own)]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("codebooks", [1, 3, 32])
def test_fewer_codebooks_are_a_prefix(codebooks: int) -> None:
    """Also for numbers between the package's bandwidths: 1.5, 3, 6, 12, 24 kbit/s are 2, 4, 8, 16, 32 codebooks."""
    wav = sounds(1, 6400)
    codes = untrained_codec(codebooks).encode(wav)
    assert codes.shape == (1, codebooks, 20)
    assert codes.dtype == torch.int64
    torch.testing.assert_close(codes[:, :8], codec_named("untrained").encode(wav)[:, :codebooks], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "codebooks"), [("encodec_embedded", 0), ("encodec_embedded", 9)])
def test_too_many_codebooks_are_an_error(name: str, codebooks: int) -> None:
    with pytest.raises(InputError, match=f"codec.codebooks={codebooks}: expected a whole number from 1 to 8"):
        load_codec(name, codebooks)


def test_padded_batch_equals_single_encodes(codec: Codec) -> None:
    """Valid frames depend on valid samples only; padding may have any content."""
    lengths = torch.tensor([1, 320, 1000, 3 * 320, 2400, 12_345, 24_000])
    wav = sounds(len(lengths), SAMPLES)
    batch = codec.encode(wav, lengths)
    assert batch.shape == (len(lengths), 8, 75)
    equal = total = 0
    for row, length, codes in zip(wav, lengths.tolist(), batch, strict=True):
        single = codec.encode(row[None, :, :length])[0]
        assert single.shape[1] == codec.num_frames(length) == -(-length // 320)
        equal += int((codes[:, : single.shape[1]] == single).sum())
        total += single.numel()
    assert equal / total > 0.998
    noise = wav + torch.randn_like(wav) * (torch.arange(SAMPLES) >= lengths[:, None, None])
    torch.testing.assert_close(codec.encode(noise, lengths), batch, rtol=0, atol=0)


def test_autocast_does_not_change_codes(codec: Codec) -> None:
    wav = sounds(2, SAMPLES)
    expected = codec.encode(wav)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(codec.encode(wav), expected, rtol=0, atol=0)
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.bfloat16  # it is restored
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(codec.encode(wav), expected, rtol=0, atol=0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert codec.decode(expected).dtype == torch.float32


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6))
@pytest.mark.parametrize("name", ["untrained", "encodec_embedded"])
def test_streamed_decoding_equals_decode(name: str, sizes: list[int]) -> None:
    codec = codec_named(name)
    codes = torch.randint(0, 1024, (2, 8, sum(sizes)), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(codes)
    assert whole.shape == (2, 1, 320 * sum(sizes))
    assert whole.std() > 1e-4
    chunks = list(decode_stream(codec, codes.split(sizes, dim=-1)))
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole, atol=1e-5, rtol=1e-4)


def test_streaming_latency_is_at_most_864_samples(codec: Codec) -> None:
    """After n frames at most 864 samples are not decoded yet."""
    given_frames = 0

    def chunks() -> list[Tensor]:
        nonlocal given_frames
        for _ in range(20):
            given_frames += 10
            yield torch.zeros(1, 8, 10, dtype=torch.int64)

    had = 0
    for wav in decode_stream(codec, chunks()):
        had += wav.shape[-1]
        assert had >= 320 * given_frames - 864
    assert had == 320 * 200


def test_fewer_codebooks_can_be_decoded(codec: Codec) -> None:
    codes = codec.encode(sounds(1, SAMPLES))
    assert codec.decode(codes[:, :1]).shape == (1, 1, SAMPLES)


@pytest.mark.parametrize("code", [-1, 1024])
def test_invalid_codes_are_errors(codec: Codec, code: int) -> None:
    codes = torch.zeros(1, 8, 10, dtype=torch.int64)
    codes[0, 3, 4] = code
    with pytest.raises(InputError, match=f"{code}.*0..1023"):
        codec.decode(codes)
    with pytest.raises(InputError, match=f"{code}.*0..1023"):
        list(decode_stream(codec, [codes]))
    with pytest.raises(InputError, match="9 codebooks|33 codebooks"):
        codec.decode(torch.zeros(1, codec.model.quantizer.n_q + 1, 10, dtype=torch.int64))


def test_identity_of_the_embedded_codec(embedded: Codec) -> None:
    file = ASSETS / "encodec_embedded.safetensors"
    assert embedded.identity == {
        "name": "encodec_embedded",
        "weights": hashlib.sha256(file.read_bytes()).hexdigest(),
        "sample_rate": 24_000,
        "frame_rate": 75,
        "codebooks": 8,
        "codebook_size": 1024,
        "dtype": "float32",
        "version": 2,
    }
    assert (embedded.hop_length, embedded.bandwidth) == (320, 750)


def test_weights_are_loaded_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with Meta's name and layout is loaded; its codes equal those of the package with these weights."""
    package = untrained_encodec(seed=3)
    torch.save(package.state_dict(), tmp_path / META_FILE)
    with pytest.raises(InputError, match="its sha256 is"):
        load_codec("encodec_24khz", 8, weights_dir=tmp_path)
    digest = hashlib.sha256((tmp_path / META_FILE).read_bytes()).hexdigest()
    monkeypatch.setattr(encodec_24khz, "META_FILE", f"encodec_24khz-{digest[:8]}.th")
    (tmp_path / META_FILE).rename(tmp_path / encodec_24khz.META_FILE)
    codec = load_codec("encodec_24khz", 4, weights_dir=tmp_path)
    assert codec.identity["weights"] == digest
    package.set_target_bandwidth(3.0)
    wav = sounds(1, SAMPLES)
    with torch.inference_mode():
        assert share_equal(codec.encode(wav), package.encode(wav)[0][0]) > 0.998


def test_missing_weights_error_names_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"codec.weights_dir={tmp_path}: there is no {META_FILE}.*https://"):
        load_codec("encodec_24khz", 8, weights_dir=tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError) as caught:
        load_codec("encodec_24khz", 8)
    for part in (f"https://dl.fbaipublicfiles.com/encodec/v0/{META_FILE}", str(tmp_path / "hub"), "codec.weights_dir="):
        assert part in str(caught.value)
    with pytest.raises(
        InputError, match="codec.name=mp3: there is no such codec; choices are .*encodec_24khz, .*encodec_embedded"
    ):
        load_codec("mp3", 8)


def test_pickle_with_code_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"encoder": Trap()}, tmp_path / "trap.th")
    digest = hashlib.sha256((tmp_path / "trap.th").read_bytes()).hexdigest()
    monkeypatch.setattr(encodec_24khz, "META_FILE", f"trap-{digest[:8]}.th")
    (tmp_path / "trap.th").rename(tmp_path / encodec_24khz.META_FILE)
    with pytest.raises(Exception, match="[Ww]eights"):
        load_codec("encodec_24khz", 8, weights_dir=tmp_path)
    assert not (tmp_path / "sprung").exists()
