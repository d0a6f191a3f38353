"""`EncodecCodec`: a codec with EnCodec's quantizer, and an encoder and a decoder that can stream.

Letters: B clips, K codebooks, D latent width, T frames, S samples.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.audio.codecs import CodecSettings
from pipeline.audio.codecs.base import Codec
from pipeline.audio.encodec.package import EncodecModel
from pipeline.audio.encodec.seanet import Seanet
from pipeline.audio.precision import full_precision


class StreamingDecoderModule(Protocol):
    """The methods by which a decoder module decodes chunk by chunk."""

    def start(self, batch: int) -> Any:
        """Return the state before the first frame of `batch` clips."""

    def step(self, frames: Tensor, state: Any) -> Tensor:
        """Decode frames [B, D, t] to the samples [B, 1, s] that are now complete, and update the state."""

    def finish(self, state: Any) -> Tensor:
        """Return the samples [B, 1, s] that remain after the last step."""


class EncodecCodec(Codec):
    """A codec around an `EncodecModel`."""

    codes_version = 2  # 1: the last frame was zero-padded

    def __init__(
        self,
        settings: CodecSettings,
        model: EncodecModel,
        weights: str,
        device: str | torch.device,
        *,
        is_waveform_codec: bool,
    ) -> None:
        """Wrap a model.

        Args:
            settings: See `Codec`, as for the others.
            model: The encoder maps [B, 1, S] and the lengths of the rows to [B, D, T]; the decoder is a
                `StreamingDecoderModule`.
            weights: See `Codec`.
            device: See `Codec`.
            is_waveform_codec: See `Codec`.
        """
        super().__init__(
            settings,
            weights,
            device,
            sample_rate=model.sample_rate,
            hop_length=model.sample_rate // model.frame_rate,
            codebook_size=model.quantizer.bins,
            max_codebooks=model.quantizer.n_q,
        )
        # The package lists 2, 4, 8, 16 and 32 codebooks; its quantizer derives any number from the bandwidth.
        model.bandwidth = self.codebooks * self.bandwidth / 1000
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.is_waveform_codec = is_waveform_codec

    def encode_batch(self, wav: Tensor, lengths: list[int]) -> Tensor:
        """See `Codec.encode_batch`."""
        latents = self.model.encoder(wav, lengths)  # [B, D, T]
        return self.model.quantizer.encode(latents, self.model.frame_rate, self.model.bandwidth).transpose(0, 1)

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`."""
        return self.model.decode([(codes, None)])

    def dequantize(self, codes: Tensor) -> Tensor:
        """See `Codec.dequantize`."""
        return self.model.quantizer.decode(codes.transpose(0, 1))

    def streaming_decoder(self) -> EncodecStreamingDecoder:
        """See `Codec.streaming_decoder`."""
        return EncodecStreamingDecoder(self)


class EncodecStreamingDecoder:
    """A `StreamingDecoder` with the state of each layer.

    Latency: EnCodec needs the first 7 frames together and then none; the embedded codec has 864 samples.
    """

    def __init__(self, codec: EncodecCodec) -> None:
        self._codec = codec
        self._state: Any = None
        self._decoder: StreamingDecoderModule = codec.model.decoder  # type: ignore[assignment]

    @torch.inference_mode()
    def push(self, chunk: Tensor) -> Tensor:
        """See `StreamingDecoder.push`."""
        codes = self._codec.validate_codes(chunk)
        with full_precision(self._codec.device):
            self._state = self._decoder.start(len(codes)) if self._state is None else self._state
            return self._decoder.step(self._codec.dequantize(codes), self._state)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """See `StreamingDecoder.flush`."""
        if self._state is None:
            return torch.zeros(1, 1, 0)
        with full_precision(self._codec.device):
            return self._decoder.finish(self._state)


def create_package_model() -> EncodecModel:
    """Return the package's 24 kHz model with newly initialized weights."""
    with warnings.catch_warnings():  # the package uses a weight norm that PyTorch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        model: EncodecModel = EncodecModel.encodec_model_24khz(pretrained=False)
        return model


def replace_seanet(model: EncodecModel) -> EncodecModel:
    """Replace the package's encoder and decoder with ours, which are faster and can stream."""
    model.encoder, model.decoder = Seanet(model.encoder), Seanet(model.decoder)  # type: ignore[assignment]
    return model
