"""`dac_16khz`, `dac_24khz`, `dac_44khz`: the Descript Audio Codec (Kumar et al. 2023), through transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS
from pipeline.audio.codecs.streaming import count_context
from pipeline.audio.codecs.transformers_codec import TransformersCodec, TransformersCodecSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


class DacSettings(TransformersCodecSettings):
    """Settings of a DAC."""

    title: ClassVar[str] = "the DAC weights of Descript"
    citation: ClassVar[str] = "Kumar et al. 2023, arXiv:2306.06546"
    licence: ClassVar[str] = "Descript published them under the MIT licence."
    model_class: ClassVar[str] = "DacModel"

    def wrap(self, model: PreTrainedModel, weights: str, device: str | torch.device) -> DacCodec:
        """See `TransformersCodecSettings.wrap`."""
        return DacCodec(self, model, weights, device)


@CODECS.register("dac_16khz")
class Dac16khzSettings(DacSettings):
    """DAC at 16 kHz: 50 frames per second, 12 codebooks."""

    repository: ClassVar[str] = "descript/dac_16khz"
    codebooks: Annotated[int, Field(ge=1, le=12)]


@CODECS.register("dac_24khz")
class Dac24khzSettings(DacSettings):
    """DAC at 24 kHz: 75 frames per second, 32 codebooks."""

    repository: ClassVar[str] = "descript/dac_24khz"
    codebooks: Annotated[int, Field(ge=1, le=32)]


@CODECS.register("dac_44khz")
class Dac44khzSettings(DacSettings):
    """DAC at 44.1 kHz: 86.13 frames per second, 9 codebooks."""

    repository: ClassVar[str] = "descript/dac_44khz"
    codebooks: Annotated[int, Field(ge=1, le=9)]


class DacCodec(TransformersCodec):
    """A codec around transformers' `DacModel`, which is not causal: a frame depends on some frames after it."""

    encodes_whole_frames = True

    def __init__(self, settings: DacSettings, model: Any, weights: str, device: str | torch.device) -> None:
        """Wrap a model. weights: the sha256 of the weights file."""
        config = model.config
        super().__init__(
            settings, model, weights, device, hop_length=math.prod(config.downsampling_ratios),
            max_codebooks=config.n_codebooks,
        )  # fmt: skip
        # convolutions of width 7: the first, three with dilations 1, 3 and 9 after each stride, and the last
        self.context_frames = count_context(config.upsampling_ratios, first=3, block=3 * (1 + 3 + 9), last=3)

    def encode_rows(self, wav: Tensor) -> Tensor:
        """See `TransformersCodec.encode_rows`."""
        codes: Tensor = self.model.encode(wav, n_quantizers=self.codebooks).audio_codes
        return codes

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`. An odd stride leaves out the last samples, which become zeros."""
        from torch.nn.functional import pad

        wav = self.model.decode(audio_codes=codes).audio_values[:, None]  # [B, 1, S]
        return pad(wav, (0, codes.shape[-1] * self.hop_length - wav.shape[-1]))

    def dequantize(self, codes: Tensor) -> Tensor:
        """See `Codec.dequantize`: after the projections of the codebooks."""
        latents: Tensor = self.model.quantizer.from_codes(codes)[0]
        return latents
