"""Splits and segments of recordings, the same in every run and independent of the other recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from pipeline.corpora.base import encode_name
from pipeline.corpora.clip import Clip


def assign_split(group: str, seed: int, valid: float, test: float) -> str:
    """Return the split of a group (a recording, an artist...), by a hash of its name and the seed.

    valid, test: the shares of these splits. A group keeps its split if others are added or removed.
    """
    digest = hashlib.sha256(encode_name(f"{seed}:{group}")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "valid" if position < test + valid else "train"


def cut_segments(
    duration: float | None, segment_seconds: float | None, min_seconds: float
) -> list[tuple[float, float | None]]:
    """Return (start, duration) in seconds of each segment of a recording, in order.

    A last segment shorter than `min_seconds` is dropped. A recording shorter than a segment, or of unknown duration, is
    one segment to its end.
    """
    length = segment_seconds and float(segment_seconds)
    if length is None or duration is None or duration <= length:
        return [(0.0, None)]
    count = int(duration / length + 1e-9)
    cuts: list[tuple[float, float | None]] = [(round(i * length, 6), length) for i in range(count)]
    rest = round(duration - count * length, 6)
    if rest >= min_seconds:
        cuts.append((round(count * length, 6), rest))
    return cuts


def cut_clip(whole: Clip, segment_seconds: float | None, min_seconds: float) -> Iterator[Clip]:
    """Yield the segments of a recording as `cut_segments` cuts it: the clip itself, or numbered clips of its parts."""
    for number, (start, duration) in enumerate(cut_segments(whole.duration, segment_seconds, min_seconds)):
        key = whole.key if segment_seconds is None else f"{whole.key}-{number:05d}"
        yield replace(whole, key=key, start=start, duration=duration)
