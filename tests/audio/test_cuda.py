"""Codecs and embedder give the same results on a GPU as on a CPU, except for float ties."""

from __future__ import annotations

import pytest
import torch

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.embedders import load_embedder
from tests.helpers.decode_stream import decode_stream
from tests.helpers.untrained_codec import untrained_codec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def sounds(batch: int, seconds: float) -> torch.Tensor:
    """Decaying tones with a little noise: [B, 1, S]."""
    random = torch.Generator().manual_seed(0)
    t = torch.arange(round(seconds * 24_000)) / 24_000
    pitches = 110 * 2 ** (torch.rand(batch, 1, generator=random) * 3)
    noise = torch.randn(batch, len(t), generator=random)
    return (0.3 * torch.sin(2 * torch.pi * pitches * t) * torch.exp(-t) + 0.01 * noise)[:, None]


def named(name: str, device: str) -> Codec:
    return untrained_codec(8, device) if name == "untrained" else load_codec(name, 8, device=device)


@pytest.mark.parametrize("name", ["untrained", "encodec_embedded"])
def test_codes_and_audio_equal_the_cpu(name: str) -> None:
    wav, lengths = sounds(6, 3), torch.tensor([72_000, 50, 1000, 35_001, 72_000, 70_000])
    cpu, gpu = named(name, "cpu"), named(name, "cuda")
    expected, codes = cpu.encode(wav, lengths), gpu.encode(wav, lengths)
    assert codes.is_cuda
    for row, other, length in zip(expected, codes.cpu(), lengths.tolist(), strict=True):
        frames = cpu.num_frames(length)
        assert (row[:, :frames] == other[:, :frames]).float().mean() > 0.99
    torch.testing.assert_close(gpu.decode(expected).cpu(), cpu.decode(expected), atol=2e-3, rtol=1e-2)
    streamed = torch.cat(list(decode_stream(gpu, expected.split([3, 9, 60, 1, 152], dim=-1))), dim=-1)
    torch.testing.assert_close(streamed, gpu.decode(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["untrained", "encodec_embedded"])
def test_tf32_and_autocast_do_not_change_codes(name: str) -> None:
    wav, codec = sounds(4, 2), named(name, "cuda")
    expected = codec.encode(wav)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            torch.testing.assert_close(codec.encode(wav), expected, rtol=0, atol=0)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_embeddings_equal_the_cpu() -> None:
    wav, lengths = sounds(5, 6)[:, 0], torch.tensor([144_000, 96_000, 3000, 20_000, 100_000])
    expected = load_embedder("encodecmae_tiny").embed(wav, lengths)
    result = load_embedder("encodecmae_tiny", device="cuda").embed(wav, lengths)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=1e-3)
