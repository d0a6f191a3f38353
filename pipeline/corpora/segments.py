"""Splits and segments of recordings, the same in every run and independent of the other recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.common.errors import InputError
from pipeline.corpora.base import encode_name


def assign_split(group: str, data: Mapping[str, Any]) -> str:
    """Return the split of a group (a recording, an artist...), by a hash of its name and `data.seed`.

    The shares are `data.valid` and `data.test`. A group keeps its split if others are added or removed.
    """
    digest = hashlib.sha256(encode_name(f"{data['seed']}:{group}")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < data["test"]:
        return "test"
    return "valid" if position < data["test"] + data["valid"] else "train"


def cut_segments(duration: float | None, data: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    """Return (start, duration) in seconds of each segment of a recording, in order.

    A last segment shorter than `data.min_seconds` is dropped. A recording shorter than a segment, or of unknown
    duration, is one segment to its end.
    """
    length = data["segment_seconds"] and float(data["segment_seconds"])
    if length is None or duration is None or duration <= length:
        return [(0.0, None)]
    count = int(duration / length + 1e-9)
    cuts: list[tuple[float, float | None]] = [(round(i * length, 6), length) for i in range(count)]
    rest = round(duration - count * length, 6)
    if rest >= data["min_seconds"]:
        cuts.append((round(count * length, 6), rest))
    return cuts


def validate(data: Mapping[str, Any]) -> None:
    """Raise InputError if shares or lengths are out of range."""
    if not (data["valid"] >= 0 and data["test"] >= 0 and data["valid"] + data["test"] < 1):
        raise InputError(
            f"data.valid={data['valid']} and data.test={data['test']}: expected shares that leave some to train on"
        )
    if data["segment_seconds"] is not None and data["segment_seconds"] <= 0:
        raise InputError(
            f"data.segment_seconds={data['segment_seconds']}: expected seconds above 0, or null for complete files"
        )
    if data["min_seconds"] <= 0:
        raise InputError(f"data.min_seconds={data['min_seconds']}: expected seconds above 0")
