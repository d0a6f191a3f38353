"""What a corpus yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Clip:
    """A stretch of one recording, not yet decoded.

    key: unique in the corpus; at most 80 of [A-Za-z0-9_-] (a WebDataset key ends at the first dot).
    path: the file to decode, or `archive.tar.gz::member` when it lies in an archive.
    split: "train", "valid" or "test".
    start, duration: seconds into the recording; a duration of None runs to its end.
    labels: what the corpus knows of it (NSynth: pitch, velocity, instrument...).
    span: where the member's bytes lie in the unpacked archive, (offset, size); None for a plain file.
    content: the member's bytes, once `pipeline.corpora.load` has read them; never filled in a plan.
    """

    key: str
    path: str
    split: str
    start: float = 0.0
    duration: float | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    content: bytes | None = field(default=None, repr=False, compare=False)
