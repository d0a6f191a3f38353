"""The settings of the download command."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.common.setting_types import Count, NonNegative, PositiveInt, Seconds, Unit
from pipeline.common.settings import Choice, CommandSettings
from pipeline.corpora import CORPORA, CorpusSettings


class DownloadSettings(CommandSettings):
    """The settings of `python -m pipeline.download`; see conf/download.yaml."""

    command: ClassVar[str] = "download"

    data: Annotated[CorpusSettings, Choice(CORPORA)]
    splits: Annotated[list[Literal["train", "valid", "test"]], Field(min_length=1)]
    quality: Literal["audio", "audio-low"]
    folders: list[Count] | None
    parallel: PositiveInt
    attempts: PositiveInt
    timeout: Seconds
    pause: Annotated[NonNegative, Unit("seconds")]
    verify: bool
    addresses: dict[str, str | None]

    def address(self, name: str) -> str:
        """The address of a server: a mirror of the settings, else the publisher's."""
        return self.addresses.get(name) or self.data.addresses[name]
