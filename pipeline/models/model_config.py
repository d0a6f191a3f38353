"""The configuration of a CodecGPT: `config.json` of an export.

Letters: K codebooks, D width, P prompt width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.common.errors import InputError


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
        positions: maximum number of steps.
        dropout: probability.
        prompt_dropout: fraction of training clips whose prompt is replaced by the null vector, for guidance.
        end_of_audio: whether the special token in an active cell means that the clip has ended.
        codebook_size: number of codes per codebook.
        frames: frames of the longest training clip; None: unknown.
        codec: identity of the codec.
        embedder: identity of the embedder.
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

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> ModelConfig:
        """A config from untrusted JSON. Raises TypeError if a value is not valid."""
        if not isinstance(content, dict):
            raise TypeError("its settings are not a JSON object")
        annotations = {f.name: str(f.type) for f in fields(cls)}
        types: dict[str, type | tuple[type, ...]] = {
            "int": int, "int | None": (int, type(None)), "str": str, "float": (int, float), "bool": bool,
            "dict[str, Any]": dict,
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
