"""`mimi`: Kyutai's Mimi (Défossez et al. 2024), 1 to 32 codebooks of 12.5 codes per second, through transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS
from pipeline.audio.codecs.base import StreamingDecoder
from pipeline.audio.codecs.streaming import Overlap, Recurrent, Stage, StagedDecoder, count_context
from pipeline.audio.codecs.transformers_codec import TransformersCodec, TransformersCodecSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@CODECS.register("mimi")
class MimiSettings(TransformersCodecSettings):
    """Settings of Mimi."""

    title: ClassVar[str] = "Kyutai's Mimi weights"
    citation: ClassVar[str] = "Défossez et al. 2024, arXiv:2410.00037"
    licence: ClassVar[str] = (
        "Kyutai published them under the Creative Commons Attribution 4.0 International licence (CC-BY-4.0)."
    )
    repository: ClassVar[str] = "kyutai/mimi"
    model_class: ClassVar[str] = "MimiModel"

    codebooks: Annotated[int, Field(ge=1, le=32)]

    def wrap(self, model: PreTrainedModel, weights: str, device: str | torch.device) -> MimiCodec:
        """See `TransformersCodecSettings.wrap`."""
        config = model.config
        return MimiCodec(
            self, model, weights, device, hop_length=config.frame_size, max_codebooks=config.num_quantizers
        )


class MimiCodec(TransformersCodec):
    """A codec around transformers' `MimiModel`, which is causal."""

    can_decode_in_pieces = True

    def encode_rows(self, wav: Tensor) -> Tensor:
        """See `TransformersCodec.encode_rows`."""
        codes: Tensor = self.model.encode(wav, num_quantizers=self.codebooks).audio_codes
        return codes

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`."""
        wav: Tensor = self.model.decode(codes).audio_values
        return wav

    def dequantize(self, codes: Tensor) -> Tensor:
        """See `Codec.dequantize`."""
        latents: Tensor = self.model.quantizer.decode(codes)
        return latents

    def streaming_decoder(self) -> StreamingDecoder:
        """See `Codec.streaming_decoder`: convolutions on pieces, the transformer with its cache; nothing is delayed."""
        from transformers import DynamicCache

        config, decoder = self.model.config, self.model.decoder
        cache = DynamicCache(config=config)  # it keeps the sliding window

        def upsample(codes: Tensor) -> Tensor:
            latents: Tensor = decoder.upsample(self.dequantize(codes))
            return latents

        def attend(x: Tensor) -> Tensor:
            # the cache by its position: its name differs between versions of transformers
            hidden = decoder.decoder_transformer(x.transpose(1, 2), None, None, cache, True).last_hidden_state
            result: Tensor = hidden.transpose(1, 2)
            return result

        # the convolutions are causal: a kernel of k reaches k - 1 steps
        dilations = [config.dilation_growth_rate**i for i in range(config.num_residual_layers)]
        block = sum(dilations) * (config.residual_kernel_size - 1)
        context = count_context(
            config.upsampling_ratios, first=config.kernel_size - 1, block=block, last=config.last_kernel_size - 1
        )
        ratio = config.latent_stride
        stages: list[Stage] = [
            Overlap(upsample, ratio, before=1, after=0),
            Recurrent(attend),
            Overlap(decoder.decoder_seanet, self.hop_length // ratio, before=context, after=0),
        ]
        return StagedDecoder(self, stages)
