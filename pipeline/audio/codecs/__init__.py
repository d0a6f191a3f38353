"""Neural audio codecs: waveforms to discrete codes and back.

    codec = load_codec("encodec_24khz", codebooks=8)
    codes = codec.encode(wav)              # [B, 1, S] -> [B, K, T], 0..codebook_size - 1
    wav = codec.decode(codes)              # [B, K, T] -> [B, 1, hop_length T]

Each codec is a file of this package with a class of settings that loads it; `base` holds the interface of what is
loaded. docs/extending.md shows how to add one.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.common.registry import Registry
from pipeline.common.setting_types import PositiveInt
from pipeline.common.settings import Settings, parse_settings

if TYPE_CHECKING:
    import torch

    from pipeline.audio.codecs.base import Codec


class CodecSettings(Settings):
    """The settings of a codec, `codec=` on the command line, and facts about it.

    Attributes:
        title: What decodes sound: "Meta's EnCodec weights".
        citation: Authors, year and article; empty for what ships with this package.
        licence: A sentence about the licence of the weights.
        needs_download: Whether the weights come from a network when they are used for the first time.
        name: The codec's name.
        codebooks: The number of codebooks that `encode` returns.
        weights_dir: The folder that holds the weights; None: the codec's own source.
    """

    title: ClassVar[str]
    citation: ClassVar[str] = ""
    licence: ClassVar[str]
    needs_download: ClassVar[bool] = True

    name: str
    codebooks: PositiveInt
    weights_dir: str | None

    @abstractmethod
    def load(self, device: str | torch.device) -> Codec:
        """Load the codec and its weights.

        Args:
            device: The device that encodes and decodes.

        Raises:
            InputError: The weights are missing or damaged, or have fewer codebooks.
        """


CODECS: Registry[type[CodecSettings]] = Registry("codec", __name__)


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
        name: A name as in `codec=`, of conf/codec/.
        codebooks: The number of codebooks that `encode` returns.
        weights_dir: The folder that holds the weights. By default they come from the codec's own source: they ship with
            this package, or are downloaded once.
        device: The device that encodes and decodes.

    Raises:
        InputError: The name is unknown, the codec has fewer codebooks, or the weights are missing or damaged.
    """
    return codec_settings(name, codebooks, weights_dir).load(device)


def codec_settings(name: str, codebooks: int, weights_dir: str | Path | None = None) -> CodecSettings:
    """The settings of a codec; see `load_codec`."""
    folder = None if weights_dir is None else str(weights_dir)
    values = {"name": name, "codebooks": codebooks, "weights_dir": folder}
    return parse_settings(CODECS.get(name, "codec.name"), values, "codec.")


def offline_codecs() -> str:
    """The end of a message about weights that could not be downloaded: the codecs that need no download."""
    names = [f"codec={name}" for name, settings in CODECS.items() if not settings.needs_download]
    return f"{', '.join(names)} needs no download"
