"""The clip of a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Clip:
    """A segment of a recording, not decoded yet.

    Attributes:
        key: Unique in the corpus; at most 80 of [A-Za-z0-9_-] (a WebDataset key ends at the first dot).
        path: The file to decode, or `archive.tar.gz::member` in an archive.
        split: "train", "valid" or "test".
        start, duration: In seconds; None means to the end of the recording.
        labels: The corpus' metadata (NSynth: pitch, velocity, instrument...).
        span: (offset, size) of the member in the uncompressed archive; None for a plain file.
        content: The member's bytes, once `pipeline.corpora.load` has read them.
        fingerprint: Of the input, when a plan was made; see `pipeline.corpora.fingerprint`.
        source: The path that a dataset records, relative to the corpus folder, once a plan was made.
    """

    key: str
    path: str
    split: str
    start: float = 0.0
    duration: float | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    content: bytes | None = field(default=None, repr=False, compare=False)
    fingerprint: str = field(default="", compare=False)
    source: str = field(default="", compare=False)
