"""`encodec_embedded`: the small codec that ships with this package, 1 to 8 codebooks of 75 codes per second.

It uses EnCodec's quantizer. Its encoder and decoder (`spectral`) have no learned weights except a mean. It is for
offline use and tests: pipeline/assets/README.md reports its quality.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.audio.codecs.base import Codec
from pipeline.audio.codecs.encodec_package import EncodecModel, ResidualVectorQuantizer
from pipeline.audio.codecs.spectral import PhaseDecoder, SpectralEncoder
from pipeline.audio.weights import check_finite, report_damage
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file
from pipeline.common.paths import ASSETS

EMBEDDED_FILE = "encodec_embedded.safetensors"


def load(codebooks: int, folder: Path | None, device: str | torch.device) -> Codec:
    """Load the codebooks from `folder`, or the ones that ship with this package."""
    folder = folder or ASSETS
    file, remedy = folder / EMBEDDED_FILE, "null uses the one that ships with this package"
    if not file.is_file():
        raise InputError(f"codec.weights_dir={folder}: there is no {EMBEDDED_FILE} in it; {remedy}")
    with report_damage(f"codec.weights_dir={folder}: {EMBEDDED_FILE}", remedy):
        model, weights = _build_model(load_file(file)), sha256_file(file)
    return Codec("encodec_embedded", model, codebooks, weights, device, is_waveform_codec=False)


def _build_model(tensors: dict[str, Tensor]) -> EncodecModel:
    check_finite(tensors)
    books, mean = tensors["codebooks"].float(), tensors["mean"].float()  # [8, 1024, D], [D]
    model = EncodecModel(
        encoder=SpectralEncoder(mean),  # type: ignore[arg-type]
        decoder=PhaseDecoder(mean),  # type: ignore[arg-type]
        quantizer=ResidualVectorQuantizer(dimension=books.shape[2], n_q=len(books), bins=books.shape[1]),
        target_bandwidths=[0.75, 1.5, 3.0, 6.0],
        sample_rate=24_000,
        channels=1,
        name="encodec_embedded",
    )
    for layer, book in zip(model.quantizer.vq.layers, books, strict=True):
        layer.get_buffer("_codebook.embed").copy_(book)
        layer.get_buffer("_codebook.inited").fill_(1)
    return model
