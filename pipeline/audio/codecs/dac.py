"""`dac_16khz`, `dac_24khz`, `dac_44khz`: the Descript Audio Codec (Kumar et al. 2023), through transformers.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline.audio.codecs import CODECS, CodecSettings, offline_codecs
from pipeline.audio.codecs.base import Codec
from pipeline.audio.hub_files import hub_file
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file
from pipeline.common.import_guards import hide_broken_packages

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class DacSettings(CodecSettings):
    """Settings of a DAC. weights_dir: a folder with `CONFIG` and `WEIGHTS`; None: a repository of the hub."""

    title: ClassVar[str] = "the DAC weights of Descript"
    citation: ClassVar[str] = "Kumar et al. 2023, arXiv:2306.06546"
    licence: ClassVar[str] = "Descript published them under the MIT licence."
    repository: ClassVar[str]

    def load(self, device: str | torch.device) -> DacCodec:
        """See `CodecSettings.load`."""
        folder = self._find_weights()
        return DacCodec(self, _read_model(folder), sha256_file(folder / WEIGHTS), device)

    def _find_weights(self) -> Path:
        """The folder with the weights, downloaded first if the hub's cache lacks them."""
        if self.weights_dir is None:
            remedy = f"with both files in a folder: codec.weights_dir=FOLDER; {offline_codecs()}"
            files = [hub_file(self.repository, name, f"codec={self.name}", remedy) for name in (CONFIG, WEIGHTS)]
            return files[0].parent
        folder = Path(self.weights_dir)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(
                    f"codec.weights_dir={folder}: there is no {name} in it; `hf download {self.repository} {CONFIG} "
                    f"{WEIGHTS} --local-dir {folder}` writes both files"
                )
        return folder


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


class DacCodec(Codec):
    """A codec around transformers' `DacModel`, which is not causal: a frame depends on some frames after it."""

    def __init__(self, settings: DacSettings, model: Any, weights: str, device: str | torch.device) -> None:
        """Wrap a model. weights: the sha256 of the weights file."""
        config = model.config
        super().__init__(
            settings,
            weights,
            device,
            sample_rate=config.sampling_rate,
            hop_length=math.prod(config.downsampling_ratios),
            codebook_size=config.codebook_size,
            max_codebooks=config.n_codebooks,
        )
        self.model = model.to(self.device)
        self.context_frames = _count_context_frames(config.upsampling_ratios)

    def encode_batch(self, wav: Tensor, lengths: list[int]) -> Tensor:
        """See `Codec.encode_batch`: rows of the same number of frames go together.

        The encoder pads every layer with zeros at the end of a row, so a row with other padding has other codes.
        """
        import torch
        from torch.nn.functional import pad

        frames = [self.num_frames(length) for length in lengths]
        codes = torch.zeros(len(wav), self.codebooks, max(frames), dtype=torch.int64, device=wav.device)
        for count in set(frames):
            rows = [b for b, own in enumerate(frames) if own == count]
            samples = wav[rows, :, : count * self.hop_length]
            samples = pad(samples, (0, count * self.hop_length - samples.shape[-1]))
            codes[rows, :, :count] = self.model.encode(samples, n_quantizers=self.codebooks).audio_codes
        return codes

    def decode_batch(self, codes: Tensor) -> Tensor:
        """See `Codec.decode_batch`. An odd stride leaves out the last samples, which become zeros."""
        from torch.nn.functional import pad

        wav = self.model.decode(audio_codes=codes).audio_values[:, None]  # [B, 1, S]
        return pad(wav, (0, codes.shape[-1] * self.hop_length - wav.shape[-1]))


def _read_model(folder: Path) -> Any:
    """The `DacModel` of a folder, in eval mode."""
    from safetensors.torch import load_file

    from pipeline.audio.weights import check_finite, report_damage

    with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
        from transformers import DacConfig, DacModel
    with report_damage(f"codec.weights_dir={folder}", f"{CONFIG} and {WEIGHTS} of a DacModel are expected"):
        tensors = load_file(folder / WEIGHTS)
        check_finite(tensors)
        model = DacModel(DacConfig.from_pretrained(folder))
        model.load_state_dict(tensors)
    return model.float().eval().requires_grad_(False)


def _count_context_frames(strides: list[int]) -> int:
    """The frames on each side of a frame that the decoder's samples depend on.

    The decoder is a convolution of width 7, then for each stride a transposed convolution that reaches one step, and
    three of width 7 with dilations 1, 3 and 9, then again one of width 7.
    """
    steps_per_frame, frames = 1, 3.0
    for stride in strides:
        frames += 1 / steps_per_frame
        steps_per_frame *= stride
        frames += 3 * (1 + 3 + 9) / steps_per_frame
    return math.ceil(frames + 3 / steps_per_frame)
