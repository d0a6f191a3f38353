"""Neural audio codecs: waveforms to discrete codes and back.

    codec = load_codec("encodec_24khz", codebooks=8)
    codes = codec.encode(wav)              # [B, 1, S] -> [B, K, T], 0..1023
    wav = codec.decode(codes)              # [B, K, T] -> [B, 1, 320 T]

Each codec is a file of this package: `encodec` (Meta's EnCodec at 24 kHz) and `embedded` (the small codec that ships
with this project; pipeline/assets/README.md reports its quality). `base` holds the interface that both share.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import InputError

if TYPE_CHECKING:
    import torch

    from pipeline.audio.codecs.base import Codec

NAMES = ("encodec_24khz", "encodec_embedded")


def load_codec(
    name: str, codebooks: int, weights_dir: str | Path | None = None, device: str | torch.device = "cpu"
) -> Codec:
    """Load a codec and its weights.

    Example:
        >>> import pipeline, torch
        >>> codec = pipeline.load_codec("encodec_embedded", codebooks=8)
        >>> codes = codec.encode(torch.zeros(1, 1, codec.sample_rate))  # [B, 1, S] -> [B, K, T]
        >>> codes.shape, codec.decode(codes).shape
        (torch.Size([1, 8, 75]), torch.Size([1, 1, 24000]))

    Args:
        name: `encodec_24khz` or `encodec_embedded`.
        codebooks: The number of codebooks that `encode` returns.
        weights_dir: The folder that holds the weights. By default Meta's weights come from torch hub's cache, where
            they are downloaded once, and those of the embedded codec ship with this package.
        device: The device that encodes and decodes.

    Raises:
        InputError: The name is unknown, the codec has fewer codebooks, or the weights are missing or damaged.
    """
    folder = None if weights_dir is None else Path(weights_dir)
    if name == "encodec_24khz":
        from pipeline.audio.codecs import encodec

        return encodec.load(codebooks, folder, device)
    if name == "encodec_embedded":
        from pipeline.audio.codecs import embedded

        return embedded.load(codebooks, folder, device)
    raise InputError(f"codec.name={name}: the codecs are {', '.join(NAMES)}")
