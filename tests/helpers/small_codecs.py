"""Models of codecs with their own rates and codebooks, small layers and random weights; their `save_pretrained` writes
what `codec.weights_dir` names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel, PreTrainedModel

from tests.helpers.dac_folder import small_dac


class Numbers(NamedTuple):
    """What a codec must have."""

    sample_rate: int
    hop_length: int
    max_codebooks: int
    codebook_size: int


NUMBERS = {
    "dac_16khz": Numbers(16_000, 320, 12, 1024),
    "dac_24khz": Numbers(24_000, 320, 32, 1024),
    "dac_44khz": Numbers(44_100, 512, 9, 1024),
    "encodec_24khz": Numbers(24_000, 320, 32, 1024),
    "encodec_32khz": Numbers(32_000, 640, 4, 2048),
    "encodec_48khz": Numbers(48_000, 320, 16, 1024),
    "mimi": Numbers(24_000, 1920, 32, 2048),
}


@torch.inference_mode()
def small_encodec(**sizes: Any) -> EncodecModel:
    """An EnCodec. sizes: fields of `EncodecConfig`; by default that of 24 kHz, which is not small."""
    model = EncodecModel(EncodecConfig(**sizes)).eval()
    for name, value in model.named_parameters():
        if name.endswith("original0"):  # at the initial norms the output hardly depends on the input
            value.copy_(dict(model.named_parameters())[name[:-1] + "1"].flatten(1).norm(dim=1).view_as(value) * 1.3)
    _fill_codebooks([layer.codebook.embed for layer in model.quantizer.layers], model.encoder(_noise()))
    return model


def small_encodec_32khz() -> EncodecModel:
    """MusicGen's EnCodec."""
    return small_encodec(
        sampling_rate=32_000, upsampling_ratios=[8, 5, 4, 4], codebook_size=2048, target_bandwidths=[2.2],
        use_causal_conv=False, use_conv_shortcut=False, num_filters=4, hidden_size=16,
    )  # fmt: skip


@torch.inference_mode()
def small_encodec_48khz() -> EncodecModel:
    """The stereo EnCodec."""
    config = EncodecConfig(
        sampling_rate=48_000, audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01,
        norm_type="time_group_norm", use_causal_conv=False, target_bandwidths=[3.0, 6.0, 12.0, 24.0], num_filters=4,
        hidden_size=16,
    )  # fmt: skip
    model = EncodecModel(config).eval()
    latents = model.encoder(_noise().expand(-1, 2, -1))
    _fill_codebooks([layer.codebook.embed for layer in model.quantizer.layers], latents)
    return model


@torch.inference_mode()
def small_mimi(**changes: Any) -> MimiModel:
    """Mimi with a window of 12 steps, 6 frames. changes: fields of `MimiConfig`."""
    sizes = {
        "num_filters": 4, "hidden_size": 32, "upsample_groups": 32, "codebook_dim": 16, "num_hidden_layers": 2,
        "vector_quantization_hidden_dimension": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "sliding_window": 12, "layer_scale_initial_scale": 0.5, "initializer_range": 0.2,
    }  # fmt: skip
    model = MimiModel(MimiConfig(**(sizes | changes))).eval()
    latents = model.encoder(_noise()).latents
    quantizer = model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        _fill_codebooks([layer.codebook.embed_sum for layer in part.layers], part.input_proj(latents))
    return model


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "dac_16khz": lambda: small_dac(sampling_rate=16_000, n_codebooks=12, downsampling_ratios=[2, 4, 5, 8]),
    "dac_24khz": lambda: small_dac(sampling_rate=24_000, n_codebooks=32, downsampling_ratios=[2, 4, 5, 8]),
    "dac_44khz": small_dac,
    "encodec_24khz": small_encodec,
    "encodec_32khz": small_encodec_32khz,
    "encodec_48khz": small_encodec_48khz,
    "mimi": small_mimi,
}


@cache
def small_model(name: str) -> PreTrainedModel:
    """The model of a codec. It produces many different codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]()


def _noise() -> Tensor:
    return 0.3 * torch.randn(2, 1, 24_000) * torch.rand(2, 1, 1)


def _fill_codebooks(books: list[Tensor], latents: Tensor) -> None:
    """Random codebooks of the size of latents [B, D, T], and of what remains of them."""
    mean, spread = latents.mean((0, 2)), latents.std((0, 2))
    for i, book in enumerate(books):
        book.normal_().mul_(spread / 2 if i == 0 else spread / 4).add_(mean if i == 0 else 0)


@torch.inference_mode()
def codes_and_sound(name: str, wav: Tensor, codebooks: int) -> tuple[Tensor, Tensor]:
    """Transformers' own codes [B, K, T] of a waveform, and its sound [B, 1, S] of these codes."""
    model = small_model(name)
    if isinstance(model, EncodecModel):
        numbers = NUMBERS[name]
        kbit = numbers.sample_rate / numbers.hop_length * (numbers.codebook_size.bit_length() - 1) / 1000
        encoded = model.encode(wav, bandwidth=min(b for b in model.config.target_bandwidths if b >= codebooks * kbit))
        codes = encoded.audio_codes[0, :, :codebooks]
        return codes, model.decode(codes[None], [None]).audio_values
    if isinstance(model, MimiModel):
        codes = model.encode(wav, num_quantizers=codebooks).audio_codes
        return codes, model.decode(codes).audio_values
    codes = model.encode(wav, n_quantizers=codebooks).audio_codes
    return codes, model.decode(audio_codes=codes).audio_values[:, None]
