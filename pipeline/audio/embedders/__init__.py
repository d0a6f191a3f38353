"""Audio embedders: one vector per clip, the mean over time of a model's features, or one for each of N stretches of it.

    embedder = load_embedder("encodecmae_tiny")
    embedder.embed(wav)                            # [B, S] -> [B, D]
    embedder.embed_frames(wav)                     # [B, S] -> [B, N, D]

Each embedder is a file of this package with a class of settings that loads it; `base` holds the interface of what is
loaded. The vectors of two embedders are not comparable; `identity` names the checkpoint. docs/extending.md shows how to
add one.

Letters: B clips, S samples at the embedder's rate, N vectors of a clip, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline.common.errors import InputError
from pipeline.common.registry import Registry
from pipeline.common.settings import Settings, parse_settings

if TYPE_CHECKING:
    import torch

    from pipeline.audio.embedders.base import Embedder


class EmbedderSettings(Settings):
    """The settings of an embedder, `embedder=` on the command line, and facts about it.

    Attributes:
        title: What turns sound into prompts: "the EnCodecMAE weights of its authors".
        citation: Authors, year and article; empty for what ships with this package.
        licence: A sentence about the licence of the weights.
        default_source: The source where the setting is null; None: what ships with this package.
        name: The embedder's name.
        source: Where the weights are; None: `default_source`.
        frames: Vectors of a clip, each of one of as many stretches of equal duration.
    """

    title: ClassVar[str]
    citation: ClassVar[str] = ""
    licence: ClassVar[str]
    default_source: ClassVar[str | None] = None

    name: str
    source: str | None
    frames: Annotated[int, Field(ge=1, le=256)]

    def recorded(self) -> dict[str, object]:
        """The settings that a dataset records. One vector is not recorded, as in datasets of older versions."""
        return {name: value for name, value in self.to_dict().items() if (name, value) != ("frames", 1)}

    @abstractmethod
    def load(self, device: str | torch.device) -> Embedder:
        """Load the embedder and its weights.

        Args:
            device: The device that embeds.

        Raises:
            InputError: The weights are missing or damaged.
        """

    @classmethod
    def source_of(cls, identity_name: str) -> str | None:
        """The source of the embedder whose identity has this name: the registered one, or with `/VARIANT` after it.

        Raises:
            InputError: There is no such variant.
        """
        if "/" in identity_name:
            raise InputError(f"there is no embedder {identity_name!r:.80}")
        return cls.default_source


EMBEDDERS: Registry[type[EmbedderSettings]] = Registry("embedder", __name__)


def load_embedder(
    name: str, source: str | None = None, device: str | torch.device = "cpu", frames: int = 1
) -> Embedder:
    """Load an embedder and its weights.

    Example:
        >>> import pipeline, torch
        >>> embedder = pipeline.load_embedder("encodecmae_tiny")
        >>> embedder.embed(torch.zeros(2, embedder.sample_rate)).shape == (2, embedder.dim)  # [B, S] -> [B, D]
        True

    Args:
        name: A name as in `embedder=`, of conf/embedder/.
        source: A repository of the Hugging Face hub (`owner/repo`), a file in one (`owner/repo/file.pt`), or a local
            file or folder; for `encodecmae_package` the name of a model. None: the embedder's own source.
        device: The device that embeds.
        frames: Vectors of a clip that `embed_frames` returns.

    Raises:
        InputError: The name is unknown, or the weights are missing or damaged.
    """
    return _parse(name, source, frames).load(device)


def embedder_of(identity: Mapping[str, Any], source: str | None = None) -> EmbedderSettings:
    """The settings that load the embedder with an `identity`.

    Args:
        identity: The identity in a manifest or an export; it is not trusted.
        source: Where the weights are; None: the embedder's own source.

    Raises:
        InputError: No embedder has this identity.
    """
    name = str(identity.get("name"))
    own = EMBEDDERS.get(name.partition("/")[0], "embedder.name").source_of(name)
    return _parse(name.partition("/")[0], own if source is None else source, identity.get("frames", 1))


def _parse(name: str, source: str | None, frames: object) -> EmbedderSettings:
    values = {"name": name, "source": source, "frames": frames}
    return parse_settings(EMBEDDERS.get(name, "embedder.name"), values, "embedder.")


def offline_embedders() -> str:
    """The end of a message about weights that could not be downloaded: the embedders that ship with this package."""
    return " or ".join(f"embedder={name}" for name, settings in EMBEDDERS.items() if settings.default_source is None)
