"""The configuration of a CodecGPT: `config.json` of an export.

Letters: K codebooks, D width, P prompt width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.settings import parse_settings
from pipeline.models.conditions import CONDITIONS, PROMPT
from pipeline.models.conditions.base import ConditionSettings
from pipeline.models.pattern import Pattern, build_pattern, pattern_settings
from pipeline.models.patterns.base import HeadCost, HeadSize


def prompt_alone() -> list[dict[str, Any]]:
    """The conditions of a model that has no others; also of all configs of older versions."""
    return [{"kind": PROMPT, "name": PROMPT, "dropout": 0.0}]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model, and the identities of the codec and embedder of its training data.

    Attributes:
        codebooks: K.
        pattern: name of the codebook pattern.
        prompt_dim: P.
        width: D.
        layers: number of transformer layers.
        heads: number of attention heads.
        positions: maximum number of steps; the prefix has positions of its own.
        dropout: probability.
        prompt_dropout: fraction of training clips all of whose conditions are replaced by null vectors, for guidance.
        end_of_audio: whether the special token in an active cell means that the clip has ended.
        codebook_size: number of codes per codebook.
        frames: frames of the longest training clip; None: unknown.
        codec: identity of the codec.
        embedder: identity of the embedder.
        conditions: the settings of each condition, in the order of the prefix; see `pipeline.models.conditions`.
        pattern_options: the settings of the pattern besides its name.
    """

    codebooks: int
    pattern: str
    prompt_dim: int
    width: int
    layers: int
    heads: int
    positions: int
    dropout: float
    prompt_dropout: float
    end_of_audio: bool
    codebook_size: int = 1024
    frames: int | None = None
    codec: dict[str, Any] = field(default_factory=dict)
    embedder: dict[str, Any] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=prompt_alone)
    pattern_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> ModelConfig:
        """A config from untrusted JSON. Raises TypeError or InputError if a value is not valid."""
        if not isinstance(content, dict):
            raise TypeError("its settings are not a JSON object")
        annotations = {f.name: str(f.type) for f in fields(cls)}
        types: dict[str, type | tuple[type, ...]] = {
            "int": int, "int | None": (int, type(None)), "str": str, "float": (int, float), "bool": bool,
            "dict[str, Any]": dict, "list[dict[str, Any]]": list,
        }  # fmt: skip
        for name, value in content.items():
            annotation = annotations.get(name)
            if annotation is None:
                continue
            is_misplaced_bool = isinstance(value, bool) and annotation != "bool"
            is_bad_count = annotation.startswith("int") and isinstance(value, int) and value < 1
            if not isinstance(value, types[annotation]) or is_misplaced_bool or is_bad_count:
                raise TypeError(f"its {name} is {value!r:.40}")
        return cls(**{name: value for name, value in content.items() if name in annotations})

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"model.width={self.width} is not a multiple of model.heads={self.heads}")
        names = [settings.name for settings in self.condition_settings]
        if not names or len({*names}) < len(names):
            raise InputError(f"conditions=[{', '.join(names)}]: expected one condition or more, each once")

    @cached_property
    def condition_settings(self) -> list[ConditionSettings]:
        """The settings of each condition. Raises InputError if they are not valid."""
        return [_parse_condition(content) for content in self.conditions]

    @cached_property
    def prefix_length(self) -> int:
        """The number of positions before the first step's."""
        return sum(settings.positions(self) for settings in self.condition_settings)

    @property
    def has_prompt(self) -> bool:
        """Whether the prompt is one of the conditions."""
        return any(settings.name == PROMPT for settings in self.condition_settings)

    @property
    def backbone_positions(self) -> int:
        """The number of positions of the backbone: those of the prefix and of all steps but the last."""
        return self.positions + self.prefix_length - 1

    def build_pattern(self) -> Pattern:
        """The pattern. Raises InputError if there is no such pattern, or if its options are not valid."""
        return build_pattern(self.pattern, self.codebooks, self.pattern_options)

    @property
    def head_size(self) -> HeadSize:
        """What the head has to fit."""
        return HeadSize(self.codebooks, self.width, self.codebook_size + 1, self.dropout)

    @property
    def head_cost(self) -> HeadCost:
        """The cost of the head, which the pattern chooses."""
        return pattern_settings(self.pattern, self.pattern_options).head_cost(self.head_size)


def default_values() -> dict[str, Any]:
    """The values of the fields that have defaults: those that the model of an older version had."""
    factories = {each.name: each.default_factory for each in fields(ModelConfig)}
    values = {each.name: each.default for each in fields(ModelConfig) if each.default is not MISSING}
    return values | {name: create() for name, create in factories.items() if create is not MISSING}


def _parse_condition(content: object) -> ConditionSettings:
    if not isinstance(content, dict):
        raise InputError(f"conditions: expected an object for each, not {content!r:.40}")
    return parse_settings(CONDITIONS.get(str(content.get("kind")), "conditions.kind"), content, "conditions.")
