"""The key of a listening test: which sound is which. The page and the answers have it encoded, so that nobody reads it.

Roles of sounds are those of ITU-R BS.1534 (MUSHRA): the hidden reference, a low anchor, and what is tested.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

ID_LENGTH = 16  # characters of the names of pages and sounds
Role = Literal["reference", "ceiling", "model", "anchor"]
Text = Annotated[str, Field(max_length=1000)]
SoundId = Annotated[str, Field(pattern=f"^[0-9a-f]{{{ID_LENGTH}}}$")]


class CheckedModel(BaseModel):
    """A part of a file that listeners send."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class ListeningKey(CheckedModel):
    """What a listening test compares.

    Attributes:
        version: The version of the format.
        question: What listeners are asked.
        conditions: The role of each kind of sound, by its title; of a model, by its run folder.
        clips: The clip of each trial.
        trials: The title of each sound of each trial.
        details: How the sounds were generated.
    """

    version: Literal[1] = 1
    question: Text
    conditions: Annotated[dict[Text, Role], Field(min_length=2, max_length=100)]
    clips: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    trials: Annotated[list[dict[SoundId, Text]], Field(min_length=1, max_length=10_000)]
    details: dict[Text, JsonValue] = {}

    def encode(self) -> str:
        """The key as a text that is not readable at a glance."""
        return base64.b64encode(self.model_dump_json().encode()).decode()

    @classmethod
    def decode(cls, text: str) -> ListeningKey:
        """The key of an encoded text.

        Raises:
            ValueError: It is not a key.
        """
        key = cls.model_validate_json(base64.b64decode(text, validate=True))
        titles = sorted(key.conditions)
        if "reference" not in key.conditions.values():
            raise ValueError("no sound is the reference")
        if len(key.clips) != len(key.trials) or any(sorted(trial.values()) != titles for trial in key.trials):
            raise ValueError("not every trial has every condition")
        if sum(map(len, key.trials)) != len({name for trial in key.trials for name in trial}):
            raise ValueError("two sounds have the same name")
        return key


def short_hash(*parts: str | bytes) -> str:
    """The name of a page or a sound: the beginning of the sha256 of texts and contents."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:ID_LENGTH]
