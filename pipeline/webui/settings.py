"""The settings of the page. This module imports nothing slow, so that a wrong setting is reported at once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from pipeline.common.errors import InputError
from pipeline.common.setting_types import PositiveInt, Seconds, Unit
from pipeline.common.settings import CommandSettings, Settings, format_value
from pipeline.generation.settings import SamplingSettings

MB = 1 << 20  # bytes
Megabytes = Annotated[float, Field(ge=0.01), Unit("MB")]
LongSeconds = Annotated[float, Field(ge=1), Unit("seconds")]
Timeout = Annotated[float, Field(ge=0.1), Unit("seconds")]
Connections = Annotated[int, Field(ge=8)]  # a browser opens 6


class LimitSettings(Settings):
    """Limits of requests, `limits.*`; conf/demo.yaml describes each."""

    upload_mb: Megabytes
    upload_seconds: LongSeconds
    seconds: LongSeconds
    samples: PositiveInt
    steps: Annotated[int, Field(ge=2)]
    waiting: PositiveInt
    storage_mb: Megabytes
    visitor_mb: Megabytes
    connections: Connections
    visitor_connections: Connections
    header_seconds: Timeout
    body_seconds: Timeout

    @property
    def upload_bytes(self) -> int:
        """The size of an uploaded file."""
        return round(self.upload_mb * MB)

    @model_validator(mode="after")
    def _check_sizes(self) -> LimitSettings:
        for small, large in (("upload_mb", "visitor_mb"), ("visitor_mb", "storage_mb")):
            low, value = getattr(self, small), getattr(self, large)
            if value < low:
                raise InputError(f"limits.{large}={value:g}: expected limits.{small}={low:g} or more")
        return self


class DemoSettings(CommandSettings):
    """The settings of `pipeline.demo`."""

    command: ClassVar[str] = "demo"

    run: Annotated[list[str], Field(min_length=1)]
    host: str
    port: Annotated[int, Field(ge=0, le=65_535)]
    allowed_hosts: list[str]
    root_path: str
    proxies: list[str]
    examples: str | list[str]
    split: str
    count: PositiveInt
    limits: LimitSettings
    delete_after_seconds: LongSeconds
    chunk: Seconds
    device: str
    codec_weights: str | None
    embedder_weights: str | None
    sampling: SamplingSettings

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, path: str) -> str:
        if path and not path.startswith(("/", "http://", "https://")):
            raise ValueError("expected a path (/demo) or a full address (https://example.org/demo)")
        return path.rstrip("/")

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, sampling: SamplingSettings) -> SamplingSettings:
        for name in sampling.sliders():
            value = getattr(sampling, name)
            if isinstance(value, list | dict):
                raise InputError(
                    f"sampling.{name}={format_value(value)}: expected one number; the page has one slider for all "
                    f"{'codebooks' if isinstance(value, list) else 'conditions'}"
                )
        return sampling
