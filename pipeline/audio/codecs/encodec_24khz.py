"""`encodec_24khz`: Meta's EnCodec at 24 kHz (Défossez et al. 2022), 1 to 32 codebooks of 75 codes per second."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS, CodecSettings, offline_codecs
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file

if TYPE_CHECKING:
    import torch

    from pipeline.audio.encodec.codec import EncodecCodec

META_FILE = "encodec_24khz-d7cc33bc.th"  # the name ends with the first digits of the file's sha256


@CODECS.register("encodec_24khz")
class Encodec24khzSettings(CodecSettings):
    """EnCodec's settings. weights_dir: a folder with `META_FILE`; None: torch hub's cache, filled by a download."""

    title: ClassVar[str] = "Meta's EnCodec weights"
    citation: ClassVar[str] = "Défossez et al. 2022, arXiv:2210.13438"
    licence: ClassVar[str] = (
        "The metadata of the `encodec` 0.1.1 package names the Creative Commons Attribution-NonCommercial 4.0 "
        "International licence (CC-BY-NC-4.0)."
    )

    codebooks: Annotated[int, Field(ge=1, le=32)]

    def load(self, device: str | torch.device) -> EncodecCodec:
        """See `CodecSettings.load`."""
        import torch

        from pipeline.audio.encodec.codec import EncodecCodec, create_package_model, replace_seanet
        from pipeline.audio.weights import check_finite, report_damage

        file = _weights_file(self.weights_dir)
        weights = sha256_file(file)
        expected = file.stem.split("-")[1]
        if not weights.startswith(expected):
            raise InputError(
                f"{file}: its sha256 is {weights[:8]}..., not {expected}...; delete it and download it again"
            )
        model = create_package_model()
        with report_damage(str(file), "delete it and download it again"):
            state = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
            check_finite(state)
        return EncodecCodec(self, replace_seanet(model), weights, device, is_waveform_codec=True)


def _weights_file(folder: str | None) -> Path:
    """Return the path of Meta's weights, downloaded first if `folder` is None and torch hub's cache lacks them."""
    import torch

    from pipeline.audio.encodec.package import ROOT_URL

    url = ROOT_URL + META_FILE
    if folder is not None:
        if not (Path(folder) / META_FILE).is_file():
            raise InputError(f"codec.weights_dir={folder}: there is no {META_FILE} in it; download it from {url}")
        return Path(folder) / META_FILE
    file = Path(torch.hub.get_dir()) / "checkpoints" / META_FILE
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.split("-")[1])
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise InputError(
                f"codec=encodec_24khz: Meta's weights are not on this machine and could not be downloaded ({error}). "
                f"Download {url} elsewhere and copy it to {file}, or to any folder with codec.weights_dir=FOLDER; "
                f"{offline_codecs()}"
            ) from error
    return file
