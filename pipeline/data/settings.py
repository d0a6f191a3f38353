"""Settings of the command `shards`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.common.setting_types import Count, PositiveInt
from pipeline.common.settings import CommandSettings


class ShardsSettings(CommandSettings):
    """The settings of `pipeline.shards`."""

    command: ClassVar[str] = "shards"

    action: Literal["verify", "describe", "doctor", "decode", "index", "merge", "convert"]
    shards: str
    to: str | None
    workers: Literal["auto"] | PositiveInt
    clips: Literal["auto"] | PositiveInt
    seed: Count
    split: str | None
    out: str
    codec_weights: str | None
    embedder_weights: str | None
    device: str
