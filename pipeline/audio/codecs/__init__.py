"""Neural audio codecs: waveforms to discrete codes and back.

    codec = load_codec("encodec_24khz", codebooks=8)
    codes = codec.encode(wav)              # [B, channels, S] -> [B, K, T], 0..codebook_size - 1
    wav = codec.decode(codes)              # [B, K, T] -> [B, channels, hop_length T]

Each codec is a file of this package with a class of settings that loads it; `base` holds the interface of what is
loaded. docs/extending.md shows how to add one.

A codec of one channel encodes stereo with `channels=2`: both channels, interleaved by codebook; see `stereo`.

Letters: B clips, K streams of codes (codebooks, and with interleaved channels twice as many), T frames, S samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.common.errors import InputError
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
        native_channels: The channels that the codec itself encodes together.
        name: The codec's name.
        codebooks: The number of codebooks that are used.
        channels: 1 for mono, 2 for stereo. Two channels of a codec of one are encoded each, with all codebooks.
        weights_dir: The folder that holds the weights; None: the codec's own source.
    """

    title: ClassVar[str]
    citation: ClassVar[str] = ""
    licence: ClassVar[str]
    needs_download: ClassVar[bool] = True
    native_channels: ClassVar[int] = 1

    name: str
    codebooks: PositiveInt
    channels: Literal[1, 2]
    weights_dir: str | None

    @classmethod
    def streams_per_codebook(cls, channels: int) -> int:
        """The streams of codes that a codebook has for sounds of 1 or 2 channels."""
        return max(1, channels // cls.native_channels)

    @property
    def streams(self) -> int:
        """The number of streams of codes, K."""
        return self.codebooks * self.streams_per_codebook(self.channels)

    def recorded(self) -> dict[str, object]:
        """The settings as a dataset records them: one channel is not named, so that older ones stay valid."""
        return {name: value for name, value in self.to_dict().items() if (name, value) != ("channels", 1)}

    def open(self, device: str | torch.device) -> Codec:
        """Load the codec for `channels`; see `load`."""
        from pipeline.audio.codecs.stereo import StereoCodec

        codec = self.load(device)
        return codec if codec.channels == self.channels else StereoCodec(self, codec)

    @abstractmethod
    def load(self, device: str | torch.device) -> Codec:
        """Load the codec and its weights, whatever `channels` says.

        Args:
            device: The device that encodes and decodes.

        Raises:
            InputError: The weights are missing or damaged, or have fewer codebooks.
        """


CODECS: Registry[type[CodecSettings]] = Registry("codec", __name__)


def load_codec(
    name: str,
    codebooks: int,
    weights_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    *,
    channels: int | None = None,
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
        codebooks: The number of codebooks that are used.
        weights_dir: The folder that holds the weights. By default they come from the codec's own source: they ship with
            this package, or are downloaded once.
        device: The device that encodes and decodes.
        channels: 1 for mono, 2 for stereo; by default as many as the codec itself has.

    Raises:
        InputError: The name is unknown, the codec has fewer codebooks, or the weights are missing or damaged.
    """
    return codec_settings(name, codebooks, weights_dir, channels).open(device)


def codec_settings(
    name: str, codebooks: int, weights_dir: str | Path | None = None, channels: int | None = None
) -> CodecSettings:
    """The settings of a codec; see `load_codec`."""
    settings, folder = CODECS.get(name, "codec.name"), None if weights_dir is None else str(weights_dir)
    values = {"name": name, "codebooks": codebooks, "channels": channels or settings.native_channels}
    return parse_settings(settings, {**values, "weights_dir": folder}, "codec.")


def codec_of(identity: Mapping[str, Any], streams: int, weights_dir: str | Path | None = None) -> CodecSettings:
    """The settings that load the codec with an `identity`.

    Args:
        identity: The identity in a manifest or an export; it is not trusted.
        streams: The number of streams of codes, K.
        weights_dir: See `load_codec`.

    Raises:
        InputError: No codec has this identity.
    """
    name, channels = str(identity.get("name")), 2 if identity.get("channels") == 2 else 1
    per_codebook = CODECS.get(name, "codec.name").streams_per_codebook(channels)
    if streams % per_codebook:
        raise InputError(f"{streams} streams of codes: {per_codebook} for each codebook of {name} are expected")
    return codec_settings(name, streams // per_codebook, weights_dir, channels)


def offline_codecs() -> str:
    """The end of a message about weights that could not be downloaded: the codecs that need no download."""
    names = [f"codec={name}" for name, settings in CODECS.items() if not settings.needs_download]
    return f"{', '.join(names)} needs no download"
