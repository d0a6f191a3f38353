"""`encodec_32khz`: the EnCodec of MusicGen (Copet et al. 2023), 1 to 4 codebooks of 50 codes per second.

Its convolutions look ahead, and an LSTM in the decoder depends on all frames before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS
from pipeline.audio.codecs.base import StreamingDecoder
from pipeline.audio.codecs.streaming import Overlap, Recurrent, Stage, StagedDecoder, count_context
from pipeline.audio.codecs.transformers_codec import TransformersCodec, TransformersCodecSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@CODECS.register("encodec_32khz")
class Encodec32khzSettings(TransformersCodecSettings):
    """Settings of MusicGen's EnCodec."""

    title: ClassVar[str] = "Meta's EnCodec weights of MusicGen"
    citation: ClassVar[str] = "Copet et al. 2023, arXiv:2306.05284"
    licence: ClassVar[str] = (
        "Meta published them with MusicGen under the Creative Commons Attribution-NonCommercial 4.0 International "
        "licence (CC-BY-NC-4.0)."
    )
    repository: ClassVar[str] = "facebook/encodec_32khz"
    model_class: ClassVar[str] = "EncodecModel"

    codebooks: Annotated[int, Field(ge=1, le=4)]

    def wrap(self, model: PreTrainedModel, weights: str, device: str | torch.device) -> Encodec32khzCodec:
        """See `TransformersCodecSettings.wrap`."""
        config = model.config
        return Encodec32khzCodec(
            self, model, weights, device, hop_length=config.hop_length, max_codebooks=config.num_quantizers
        )


class Encodec32khzCodec(TransformersCodec):
    """A codec around transformers' `EncodecModel` with convolutions that look ahead."""

    can_decode_in_pieces = True

    def encode_rows(self, wav: Tensor) -> Tensor:
        """See `TransformersCodec.encode_rows`. The model's own method knows a few bandwidths only."""
        # half a codebook more, so that rounding does not leave out the last one
        bandwidth = (self.codebooks + 0.5) * self.bandwidth / 1000
        codes: Tensor = self.model.quantizer.encode(self.model.encoder(wav), bandwidth)  # [K, B, T]
        return codes.transpose(0, 1)

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`."""
        wav: Tensor = self.model.decode(codes[None], [None]).audio_values
        return wav

    def dequantize(self, codes: Tensor) -> Tensor:
        """See `Codec.dequantize`."""
        latents: Tensor = self.model.quantizer.decode(codes.transpose(0, 1))
        return latents

    def streaming_decoder(self) -> StreamingDecoder:
        """See `Codec.streaming_decoder`: the layers before and after the LSTM on pieces, the LSTM with its state."""
        import torch

        config, layers = self.model.config, self.model.decoder.layers
        at = next(i for i, layer in enumerate(layers) if hasattr(layer, "lstm"))
        before, after = torch.nn.Sequential(*layers[:at]), torch.nn.Sequential(*layers[at + 1 :])
        state: Any = None

        def start(codes: Tensor) -> Tensor:
            hidden: Tensor = before(self.dequantize(codes))
            return hidden

        def recur(x: Tensor) -> Tensor:
            nonlocal state
            steps = x.permute(2, 0, 1)  # [T, B, C]
            y, state = layers[at].lstm(steps, state)
            result: Tensor = (y + steps).permute(1, 2, 0)
            return result

        dilations = [config.dilation_growth_rate**i for i in range(config.num_residual_layers)]
        block = sum(dilations) * (config.residual_kernel_size // 2)
        context = count_context(config.upsampling_ratios, first=0, block=block, last=config.last_kernel_size // 2)
        stages: list[Stage] = [
            Overlap(start, 1, config.kernel_size // 2),
            Recurrent(recur),
            Overlap(after, self.hop_length, context),
        ]
        return StagedDecoder(self, stages)
