"""Settings of generation, and their defaults in conf/."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, create_model, field_validator, model_validator

from pipeline.common.paths import CONF
from pipeline.common.setting_types import NonNegative, PositiveInt, Seconds, Unit
from pipeline.common.settings import CommandSettings, Settings, parse_settings
from pipeline.generation.filters import FILTERS, SamplingFilter, Slider

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Mode = Literal["prompt", "interpolate", "morph", "continue", "extend"]
Blend = Literal["linear", "slerp"]
WindowSeconds = Literal["auto", "half"] | Seconds
KeptSeconds = Literal["auto"] | Annotated[NonNegative, Unit("seconds")]
GUIDANCE = Slider("Guidance", 6, 0.1, "above 1: follows the prompt more closely, at half the speed")
ConditionValue = str | int | float | bool | list[str | int | float] | None
ConditionValues = dict[str, ConditionValue]  # by the condition's name
KEYFRAMES = "expected [{at: 0, prompt: a.wav}, {at: 4, prompt: b.wav}]"


class SamplingSettings(Settings):
    """How codes are sampled, `sampling.*` on the command line: guidance, and the value of each filter by its name.

    A filter without a value is off. `sampling.model_copy(update={"temperature": 0.7})` changes a value.

    Attributes:
        guidance: The scale of classifier-free guidance by all conditions together, or by the condition's name. 1: no
            guidance; above 1 moves the logits further away from those without the conditions. See `guidance.py`.
    """

    guidance: float | dict[str, float]

    @classmethod
    def with_extensions(cls) -> type[SamplingSettings]:
        """The class with a field for each registered filter."""
        return _with_filters(_sorted_filters())

    @staticmethod
    def sliders() -> dict[str, Slider]:
        """The sliders of the web page by name of the setting: those of the filters, then guidance."""
        return {name: cls.slider for name, cls in _sorted_filters() if cls.slider} | {"guidance": GUIDANCE}

    @model_validator(mode="before")
    @classmethod
    def _turn_off_missing_filters(cls, values: dict[str, object]) -> dict[str, object]:
        return {name: filter_class.off for name, filter_class in FILTERS.items()} | values

    def build_filters(
        self, codebooks: int, device: torch.device, group: slice | None = None
    ) -> list[Callable[[Tensor], Tensor]]:
        """The functions of logits [B, K, C] that are applied one after the other.

        Args:
            codebooks: K.
            device: The device of the logits.
            group: The codebooks whose logits the functions get; None: all.

        Raises:
            InputError: A value does not fit the model.
        """
        values = [(cls, getattr(self, name)) for name, cls in _sorted_filters()]
        filters = [cls.model_validate({"value": value}) for cls, value in values if value != cls.off]
        functions = [each.build(codebooks, device) for each in filters]
        members = range(codebooks)[group or slice(None)]
        if len(members) == codebooks:
            return functions
        return [each.of_codebooks(members).build(len(members), device) for each in filters]


def _sorted_filters() -> tuple[tuple[str, type[SamplingFilter]], ...]:
    return tuple(sorted(FILTERS.items(), key=lambda item: item[1].order))


@functools.cache
def _with_filters(filters: tuple[tuple[str, type[SamplingFilter]], ...]) -> type[SamplingSettings]:
    fields: dict[str, Any] = {}
    for name, filter_class in filters:
        field = filter_class.model_fields["value"]
        fields[name] = (field.annotation, field)
    return create_model("SamplingSettings", __base__=SamplingSettings, __doc__=SamplingSettings.__doc__, **fields)


def sampling_settings(**values: object) -> SamplingSettings:
    """The settings group `sampling` with these values, `temperature=0.7`; other filters and guidance are off.

    Raises:
        InputError: A value is not valid.
    """
    return parse_settings(SamplingSettings.with_extensions(), {"guidance": 1, **values}, "sampling.")


class Keyframe(Settings):
    """A prompt with the time in seconds at which it applies alone, and values of conditions from this time on.

    Its fields are not in conf/, so they have defaults here.
    """

    at: NonNegative
    prompt: str | None = None
    prompt_text: str | None = None
    conditions: ConditionValues = Field(default_factory=dict)


class GenerateSettings(CommandSettings):
    """The settings of `pipeline.generate`; conf/generate.yaml explains them."""

    command: ClassVar[str] = "generate"

    sampling: SamplingSettings
    run: str | None
    mode: Mode
    prompt: str | Annotated[list[str], Field(min_length=1)] | None
    prompt_text: str | Annotated[list[str], Field(min_length=1)] | None
    conditions: ConditionValues
    out: str
    seconds: Literal["auto"] | Annotated[float, Field(gt=0, le=86_400), Unit("seconds")]  # a day: half a GB of codes
    n: PositiveInt
    seed: int
    source: str | None = Field(alias="from")
    blend: Blend
    steps: PositiveInt
    crossfade_seconds: Annotated[NonNegative, Unit("seconds")]
    keyframes: list[Keyframe] | None
    keyframe_interval: Seconds
    audio: str | None
    window: WindowSeconds
    window_stride: WindowSeconds
    window_keep: KeptSeconds
    stream: bool
    chunk: Seconds
    prompt_seconds: Seconds
    batch: Literal["auto"] | PositiveInt
    batch_invariant: bool
    device: str
    codec_weights: str | None
    embedder_weights: str | None

    @field_validator("keyframes", mode="wrap")
    @classmethod
    def _check_keyframes(
        cls, value: object, validate: Callable[[object], list[Keyframe] | None]
    ) -> list[Keyframe] | None:
        try:
            keyframes = validate(value)
        except ValueError:
            raise ValueError(KEYFRAMES) from None
        times = [keyframe.at for keyframe in keyframes or []]
        if keyframes is not None and (times[:1] != [0] or times != sorted(set(times))):
            raise ValueError("expected different times in ascending order, the first at 0")
        counts = {(each.prompt is not None) + (each.prompt_text is not None) for each in keyframes or []}
        if 2 in counts:
            raise ValueError("expected prompt or prompt_text in a keyframe, not both")
        if len(counts) > 1:
            raise ValueError("expected a prompt in each keyframe, or in none")
        return keyframes


@functools.cache
def default_settings() -> GenerateSettings:
    """The defaults of conf/generate.yaml."""
    values = yaml.safe_load((CONF / "generate.yaml").read_text())
    del values["defaults"]
    values["sampling"] = yaml.safe_load((CONF / "sampling" / "default.yaml").read_text())
    return parse_settings(GenerateSettings, values)
