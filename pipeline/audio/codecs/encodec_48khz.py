"""`encodec_48khz`: Meta's stereo EnCodec (Défossez et al. 2022), 1 to 16 codebooks of 150 codes per second.

Each codebook describes both channels. Every layer is normalized over the time of a clip, so codes say nothing about the
clip's level, and each frame depends on all others. Meta's program encodes overlapping seconds and keeps the level of
each. Here a clip is encoded as one piece, so that the changes of level within it are in its codes, and it is decoded at
`LEVEL`, because a language model generates codes and no levels.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.audio.codecs import CODECS
from pipeline.audio.codecs.transformers_codec import TransformersCodec, TransformersCodecSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LEVEL = 0.1  # root mean square of a decoded clip's mono mix, -20 dBFS


@CODECS.register("encodec_48khz")
class Encodec48khzSettings(TransformersCodecSettings):
    """Settings of the stereo EnCodec."""

    title: ClassVar[str] = "Meta's weights of the stereo EnCodec"
    citation: ClassVar[str] = "Défossez et al. 2022, arXiv:2210.13438"
    licence: ClassVar[str] = (
        "The metadata of the `encodec` 0.1.1 package names the Creative Commons Attribution-NonCommercial 4.0 "
        "International licence (CC-BY-NC-4.0)."
    )
    native_channels: ClassVar[int] = 2
    repository: ClassVar[str] = "facebook/encodec_48khz"
    model_class: ClassVar[str] = "EncodecModel"

    codebooks: Annotated[int, Field(ge=1, le=16)]
    channels: Literal[2]

    def wrap(self, model: PreTrainedModel, weights: str, device: str | torch.device) -> Encodec48khzCodec:
        """See `TransformersCodecSettings.wrap`."""
        config = model.config
        return Encodec48khzCodec(
            self, model, weights, device, hop_length=config.hop_length, max_codebooks=config.num_quantizers
        )


class Encodec48khzCodec(TransformersCodec):
    """A codec around transformers' `EncodecModel` of two channels, without its chunks."""

    channels = 2

    def encode_rows(self, wav: Tensor) -> Tensor:
        """See `TransformersCodec.encode_rows`: the clips have the level that the model is trained with."""
        level = wav.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
        # half a codebook more, so that rounding does not leave out the last one
        bandwidth = (self.codebooks + 0.5) * self.bandwidth / 1000
        codes: Tensor = self.model.quantizer.encode(self.model.encoder(wav / level), bandwidth)  # [K, B, T]
        return codes.transpose(0, 1)

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`."""
        wav: Tensor = self.model.decoder(self.dequantize(codes))
        return LEVEL * wav

    def dequantize(self, codes: Tensor) -> Tensor:
        """See `Codec.dequantize`: of clips at the level that the model is trained with."""
        latents: Tensor = self.model.quantizer.decode(codes.transpose(0, 1))
        return latents
