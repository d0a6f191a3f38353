"""`encodec_24khz`: Meta's EnCodec at 24 kHz (Défossez et al. 2022), 1 to 32 codebooks of 75 codes per second.

The weights are Meta's file, or those that transformers reads: their names differ, the codes do not.
"""

from __future__ import annotations

import json
import re
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS, CodecSettings, offline_codecs
from pipeline.audio.codecs.transformers_codec import CONFIG, HUB, WEIGHTS, find_model_folder
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.audio.encodec.codec import EncodecCodec

META_FILE = "encodec_24khz-d7cc33bc.th"  # the name ends with the first digits of the file's sha256
REPOSITORY = "facebook/encodec_24khz"  # the same weights, for transformers
_CONFIG_OF_24KHZ = {  # what shapes of weights do not show, as far as CONFIG has it
    "model_type": "encodec", "sampling_rate": 24_000, "upsampling_ratios": [8, 5, 4, 2], "normalize": False,
    "chunk_length_s": None, "norm_type": "weight_norm", "pad_mode": "reflect", "use_causal_conv": True,
}  # fmt: skip
_PACKAGE_NAMES = (  # of weights: a pattern of transformers' name, and what the package has there
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"\.conv\.(?=weight|bias)", ".conv.conv."),
)


@CODECS.register("encodec_24khz")
class Encodec24khzSettings(CodecSettings):
    """EnCodec's settings.

    weights_dir: a folder with `META_FILE`, or with `CONFIG` and `WEIGHTS` of transformers; or `hub:OWNER/NAME`, a
    repository with these; None: `META_FILE` in torch hub's cache, filled by a download.
    """

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

        model = create_package_model()
        if self._is_for_transformers():
            folder = find_model_folder(self.name, self.weights_dir, REPOSITORY)
            weights = sha256_file(folder / WEIGHTS)
            with report_damage(f"codec.weights_dir={folder}", f"{CONFIG} and {WEIGHTS} of {REPOSITORY} are expected"):
                state = _read_transformers_weights(folder, {*model.state_dict()})
                model.load_state_dict(state)
                check_finite(state)
        else:
            file = _weights_file(self.weights_dir)
            weights = sha256_file(file)
            expected = file.stem.split("-")[1]
            if not weights.startswith(expected):
                raise InputError(
                    f"{file}: its sha256 is {weights[:8]}..., not {expected}...; delete it and download it again"
                )
            with report_damage(str(file), "delete it and download it again"):
                state = torch.load(file, map_location="cpu", weights_only=True)
                model.load_state_dict(state)
                check_finite(state)
        return EncodecCodec(self, replace_seanet(model), weights, device, is_waveform_codec=True)

    def _is_for_transformers(self) -> bool:
        """Whether the weights are in transformers' format. A folder with both has Meta's file read, as ever."""
        if self.weights_dir is None or self.weights_dir.startswith(HUB):
            return self.weights_dir is not None
        folder = Path(self.weights_dir)
        return (folder / WEIGHTS).is_file() and not (folder / META_FILE).is_file()


def _read_transformers_weights(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The weights of a folder, under the package's names."""
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG).read_bytes())
    for field, expected in _CONFIG_OF_24KHZ.items():
        if config.get(field, expected) != expected:
            raise ValueError(f"{field} is {config[field]!r} in {CONFIG}, expected {expected!r}")
    state = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for pattern, replacement in _PACKAGE_NAMES:
            name = re.sub(pattern, replacement, name)
        if name not in names:  # a transposed convolution
            name = name.replace(".conv.conv.", ".convtr.convtr.")
        state[name] = tensor
    return state


def _weights_file(folder: str | None) -> Path:
    """Return the path of Meta's weights, downloaded first if `folder` is None and torch hub's cache lacks them."""
    import torch

    from pipeline.audio.encodec.package import ROOT_URL

    url = ROOT_URL + META_FILE
    if folder is not None:
        if not (Path(folder) / META_FILE).is_file():
            raise InputError(
                f"codec.weights_dir={folder}: there is no {META_FILE} in it; download it from {url}, or run "
                f"`hf download {REPOSITORY} {CONFIG} {WEIGHTS} --local-dir {folder}`"
            )
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
