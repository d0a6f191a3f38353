"""Decoding of codes that arrive in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from pipeline.audio.codecs.base import Codec


def decode_stream(codec: Codec, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decode chunks of codes [B, k, t] to chunks of waveforms [B, 1, s], which joined equal `decode`."""
    decoder = codec.streaming_decoder()
    for chunk in chunks:
        if (wav := decoder.push(chunk)).shape[-1]:
            yield wav
    if (wav := decoder.flush()).shape[-1]:
        yield wav
