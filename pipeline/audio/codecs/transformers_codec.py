"""The base of codecs that transformers implements: a folder or repository with `CONFIG` and `WEIGHTS`.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.audio.codecs import CodecSettings, offline_codecs
from pipeline.audio.codecs.base import Codec
from pipeline.audio.hub_files import hub_file
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file
from pipeline.common.import_guards import hide_broken_packages

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB = "hub:"  # codec.weights_dir=hub:OWNER/NAME


class TransformersCodecSettings(CodecSettings):
    """Settings of such a codec. weights_dir: a folder, or `hub:OWNER/NAME`; None: `repository`.

    Attributes:
        repository: Where the authors published the weights on the Hugging Face hub.
        model_class: The class in transformers.
    """

    repository: ClassVar[str]
    model_class: ClassVar[str]

    @abstractmethod
    def wrap(self, model: PreTrainedModel, weights: str, device: str | torch.device) -> Codec:
        """The codec around a loaded model. weights: the sha256 of the weights file."""

    def load(self, device: str | torch.device) -> Codec:
        """See `CodecSettings.load`."""
        folder = find_model_folder(self.name, self.weights_dir, self.repository)
        return self.wrap(_read_model(folder, self.model_class), sha256_file(folder / WEIGHTS), device)


class TransformersCodec(Codec):
    """A codec around a model of transformers.

    Attributes:
        encodes_whole_frames: Whether clips are zero-padded to whole frames before they are encoded.
    """

    encodes_whole_frames = False

    def __init__(
        self, settings: CodecSettings, model: Any, weights: str, device: str | torch.device, *, hop_length: int,
        max_codebooks: int,
    ) -> None:  # fmt: skip
        """Wrap a model. weights: the sha256 of the weights file; the rest as in `Codec`."""
        rate, size = model.config.sampling_rate, model.config.codebook_size
        super().__init__(
            settings, weights, device, sample_rate=rate, hop_length=hop_length, codebook_size=size,
            max_codebooks=max_codebooks,
        )  # fmt: skip
        self.model = model.to(self.device)

    @abstractmethod
    def encode_rows(self, wav: Tensor) -> Tensor:
        """Encode rows [B, channels, S] of the same length to codes [B, codebooks, ceil(S / hop_length)]."""

    def encode_batch(self, wav: Tensor, lengths: list[int]) -> Tensor:
        """See `Codec.encode_batch`: rows of the same length go together.

        The layers pad each row at its end, so a row with other padding has other codes.
        """
        import torch
        from torch.nn.functional import pad

        frames = [self.num_frames(length) for length in lengths]
        ends = [count * self.hop_length for count in frames] if self.encodes_whole_frames else lengths
        codes = torch.zeros(len(wav), self.codebooks, max(frames), dtype=torch.int64, device=wav.device)
        for end in set(ends):
            rows = [b for b, own in enumerate(ends) if own == end]
            samples = wav[rows, :, :end]
            samples = pad(samples, (0, end - samples.shape[-1]))
            codes[rows, :, : self.num_frames(end)] = self.encode_rows(samples)
        return codes


def find_model_folder(name: str, weights_dir: str | None, repository: str) -> Path:
    """The folder with the config and the weights of a model, downloaded first if the hub's cache lacks them.

    Args:
        name: The codec, for messages.
        weights_dir: The setting.
        repository: The repository of the hub where weights_dir is None.

    Raises:
        InputError: The files do not exist, or cannot be downloaded.
    """
    if weights_dir is None or weights_dir.startswith(HUB):
        source = repository if weights_dir is None else weights_dir.removeprefix(HUB)
        setting = f"codec={name}" if weights_dir is None else f"codec.weights_dir={weights_dir}"
        remedy = f"with both files in a folder: codec.weights_dir=FOLDER; {offline_codecs()}"
        files = [hub_file(source, file, setting, remedy) for file in (CONFIG, WEIGHTS)]
        return files[0].parent
    folder = Path(weights_dir)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(
                f"codec.weights_dir={folder}: there is no {file} in it; `hf download {repository} {CONFIG} "
                f"{WEIGHTS} --local-dir {folder}` writes both files"
            )
    return folder


def _read_model(folder: Path, class_name: str) -> PreTrainedModel:
    """The model of a folder, in fp32 and eval mode."""
    import torch

    from pipeline.audio.weights import check_finite, report_damage

    with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
        import transformers

        model_class = getattr(transformers, class_name)
    with (
        report_damage(f"codec.weights_dir={folder}", f"{CONFIG} and {WEIGHTS} of a {class_name} are expected"),
        _silence(transformers),
    ):
        model_type = json.loads((folder / CONFIG).read_bytes()).get("model_type")
        if model_type != model_class.config_class.model_type:
            raise ValueError(f"model_type {model_type!r} in {CONFIG}")
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                raise ValueError(f"{problem.replace('_', ' ')}: {min(map(str, info[problem]))}")
        check_finite(model.state_dict())
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Hide transformers' progress bar and its report on weights."""
    verbosity, shows_progress = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if shows_progress:
            transformers.logging.enable_progress_bar()
