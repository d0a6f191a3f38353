"""Stereo with a codec of one channel: both channels are encoded, and their codes interleaved by codebook.

Codebook k of the left channel is stream 2 k, that of the right channel stream 2 k + 1, as in MusicGen's stereo models
(Copet et al. 2023, arXiv:2306.05284). The first 2 n streams are the first n codebooks of both channels.

Letters: B clips, K codebooks of the codec, T frames, S samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.audio.codecs.base import Codec, StreamingDecoder
from pipeline.common.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.audio.codecs import CodecSettings


class StereoCodec(Codec):
    """A codec of one channel, for two."""

    channels = 2
    streams_per_codebook = 2

    def __init__(self, settings: CodecSettings, mono: Codec) -> None:
        """Wrap a codec of one channel, loaded from the same settings."""
        super().__init__(
            settings,
            mono.weights,
            mono.device,
            sample_rate=mono.sample_rate,
            hop_length=mono.hop_length,
            codebook_size=mono.codebook_size,
            max_codebooks=mono.max_codebooks,
        )
        self.mono = mono
        self.codebooks, self.max_codebooks = 2 * mono.codebooks, 2 * mono.max_codebooks
        self.codes_version, self.is_waveform_codec = mono.codes_version, mono.is_waveform_codec
        self.context_frames = mono.context_frames

    @property
    def can_decode_in_pieces(self) -> bool:
        """See `Codec.can_decode_in_pieces`."""
        return self.mono.can_decode_in_pieces

    @property
    def best_batch(self) -> int:
        """See `Codec.best_batch`; a clip has two sounds."""
        return max(1, self.mono.best_batch // 2)

    def encode_batch(self, wav: Tensor, lengths: list[int]) -> Tensor:
        """See `Codec.encode_batch`."""
        codes = self.mono.encode_batch(wav.flatten(0, 1)[:, None], [n for n in lengths for _ in range(2)])
        return interleave(codes)

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`."""
        return _pair_channels(self.mono.decode_batch(separate(codes)))

    def dequantize(self, codes: Tensor) -> Tensor | None:
        """See `Codec.dequantize`: those of the left channel, then those of the right."""
        latents = self.mono.dequantize(separate(codes))
        return None if latents is None else latents.reshape(len(codes), -1, codes.shape[-1])

    def streaming_decoder(self) -> StreamingDecoder:
        """See `Codec.streaming_decoder`."""
        return _StereoStreamingDecoder(self)

    def validate_codes(self, codes: Tensor) -> Tensor:
        """See `Codec.validate_codes`; there are as many streams of the right channel as of the left."""
        if codes.shape[1] % 2:
            raise InputError(f"{codes.shape[1]} streams of codes to decode: two channels have an even number of them")
        return super().validate_codes(codes)


class _StereoStreamingDecoder:
    """See `StreamingDecoder`."""

    def __init__(self, codec: StereoCodec) -> None:
        self._codec, self._decoder = codec, codec.mono.streaming_decoder()
        self._is_empty = True

    def push(self, chunk: Tensor) -> Tensor:
        """See `StreamingDecoder.push`."""
        self._is_empty = False
        return _pair_channels(self._decoder.push(separate(self._codec.validate_codes(chunk))))

    def flush(self) -> Tensor:
        """See `StreamingDecoder.flush`."""
        rest = self._decoder.flush()
        return rest.expand(1, 2, 0) if self._is_empty else _pair_channels(rest)


def interleave(codes: Tensor) -> Tensor:
    """The codes of stereo clips [B, 2 K, T] from those of left and right channels in turn, [2 B, K, T]."""
    rows, codebooks, frames = codes.shape
    return codes.reshape(rows // 2, 2, codebooks, frames).transpose(1, 2).reshape(rows // 2, 2 * codebooks, frames)


def separate(codes: Tensor) -> Tensor:
    """The inverse of `interleave`: [B, 2 K, T] -> [2 B, K, T]."""
    batch, streams, frames = codes.shape
    return codes.reshape(batch, streams // 2, 2, frames).transpose(1, 2).reshape(2 * batch, streams // 2, frames)


def _pair_channels(wav: Tensor) -> Tensor:
    """[2 B, 1, S] -> [B, 2, S]."""
    return wav.reshape(-1, 2, wav.shape[-1]) if wav.shape[-1] else wav.new_zeros(len(wav) // 2, 2, 0)
