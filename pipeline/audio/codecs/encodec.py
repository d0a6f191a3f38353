"""`encodec_24khz`: Meta's EnCodec at 24 kHz (Défossez et al. 2022), 1 to 32 codebooks of 75 codes per second."""

from __future__ import annotations

import urllib.error
import warnings
from pathlib import Path

import torch

from pipeline.audio.codecs.base import Codec
from pipeline.audio.codecs.encodec_package import ROOT_URL, EncodecModel
from pipeline.audio.codecs.seanet import Seanet
from pipeline.audio.weights import check_finite, report_damage
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file

META_FILE = "encodec_24khz-d7cc33bc.th"  # the name ends with the first digits of the file's sha256


def load(codebooks: int, folder: Path | None, device: str | torch.device) -> Codec:
    """Load Meta's weights from `folder`, or from torch hub's cache, where they are downloaded once."""
    file = _weights_file(folder)
    weights = sha256_file(file)
    expected = file.stem.split("-")[1]
    if not weights.startswith(expected):
        raise InputError(f"{file}: its sha256 is {weights[:8]}..., not {expected}...; delete it and download it again")
    model = create_package_model()
    with report_damage(str(file), "delete it and download it again"):
        state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        check_finite(state)
    return Codec("encodec_24khz", replace_seanet(model), codebooks, weights, device, is_waveform_codec=True)


def create_package_model() -> EncodecModel:
    """Return the package's 24 kHz model with newly initialized weights."""
    with warnings.catch_warnings():  # the package uses a weight norm that PyTorch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return EncodecModel.encodec_model_24khz(pretrained=False)


def replace_seanet(model: EncodecModel) -> EncodecModel:
    """Replace the package's encoder and decoder with ours, which are faster and can stream."""
    model.encoder, model.decoder = Seanet(model.encoder), Seanet(model.decoder)  # type: ignore[assignment]
    return model


def _weights_file(folder: Path | None) -> Path:
    """Return the path of Meta's weights, downloaded first if `folder` is None and torch hub's cache lacks them."""
    url = ROOT_URL + META_FILE
    if folder is not None:
        if not (folder / META_FILE).is_file():
            raise InputError(f"codec.weights_dir={folder}: there is no {META_FILE} in it; download it from {url}")
        return folder / META_FILE
    file = Path(torch.hub.get_dir()) / "checkpoints" / META_FILE
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.split("-")[1])
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise InputError(
                f"codec=encodec_24khz: Meta's weights are not on this machine and could not be downloaded ({error}). "
                f"Download {url} elsewhere and copy it to {file}, or to any folder with codec.weights_dir=FOLDER; "
                f"codec=encodec_embedded needs no download"
            ) from error
    return file
