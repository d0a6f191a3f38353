"""`encodec_embedded`: the small codec that ships with this package, 1 to 8 codebooks of 75 codes per second.

It uses EnCodec's quantizer. Its encoder and decoder (`spectral`) have no learned weights except a mean. It is for
offline use and tests: pipeline/assets/README.md reports its quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS, CodecSettings
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file
from pipeline.common.paths import ASSETS

if TYPE_CHECKING:
    import torch

    from pipeline.audio.encodec.codec import EncodecCodec
    from pipeline.audio.encodec.package import EncodecModel

EMBEDDED_FILE = "encodec_embedded.safetensors"
SAMPLE_RATE = 24_000  # Hz
CODEBOOKS, CODEBOOK_SIZE = 8, 1024


@CODECS.register("encodec_embedded")
class EncodecEmbeddedSettings(CodecSettings):
    """Settings of the embedded codec. weights_dir: a folder with `EMBEDDED_FILE`; None: the one that ships."""

    title: ClassVar[str] = "the small codec that ships with the program"
    licence: ClassVar[str] = "It is under the program's licence."
    needs_download: ClassVar[bool] = False

    codebooks: Annotated[int, Field(ge=1, le=CODEBOOKS)]

    def load(self, device: str | torch.device) -> EncodecCodec:
        """See `CodecSettings.load`."""
        from pipeline.audio.encodec.codec import EncodecCodec
        from pipeline.audio.weights import report_damage

        folder = ASSETS if self.weights_dir is None else Path(self.weights_dir)
        file, remedy = folder / EMBEDDED_FILE, "null uses the one that ships with this package"
        if not file.is_file():
            raise InputError(f"codec.weights_dir={folder}: there is no {EMBEDDED_FILE} in it; {remedy}")
        with report_damage(f"codec.weights_dir={folder}: {EMBEDDED_FILE}", remedy):
            model, weights = _read_model(file, self.name), sha256_file(file)
        return EncodecCodec(self, model, weights, device, is_waveform_codec=False)


def _read_model(file: Path, name: str) -> EncodecModel:
    from safetensors.torch import load_file

    from pipeline.audio.encodec.package import EncodecModel, ResidualVectorQuantizer
    from pipeline.audio.encodec.spectral import PhaseDecoder, SpectralEncoder
    from pipeline.audio.weights import check_finite

    tensors = load_file(file)
    check_finite(tensors)
    books, mean = tensors["codebooks"].float(), tensors["mean"].float()  # [8, 1024, D], [D]
    model = EncodecModel(
        encoder=SpectralEncoder(mean),  # type: ignore[arg-type]
        decoder=PhaseDecoder(mean),  # type: ignore[arg-type]
        quantizer=ResidualVectorQuantizer(dimension=books.shape[2], n_q=len(books), bins=books.shape[1]),
        target_bandwidths=[0.75, 1.5, 3.0, 6.0],
        sample_rate=SAMPLE_RATE,
        channels=1,
        name=name,
    )
    for layer, book in zip(model.quantizer.vq.layers, books, strict=True):
        layer.get_buffer("_codebook.embed").copy_(book)
        layer.get_buffer("_codebook.inited").fill_(1)
    return model
