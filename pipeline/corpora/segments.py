"""How recordings fall into splits and segments: the same way in every run, whatever else is in the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.common.errors import InputError
from pipeline.corpora.base import encode_name


def assign_split(group: str, data: Mapping[str, Any]) -> str:
    """The split of a recording, an artist...: by a hash of its name and `data.seed`, in shares of `valid` and `test`.

    A group keeps its split when others come or go.
    """
    digest = hashlib.sha256(encode_name(f"{data['seed']}:{group}")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < data["test"]:
        return "test"
    return "valid" if place < data["test"] + data["valid"] else "train"


def cut_segments(duration: float | None, data: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    """(start, duration) in seconds of each segment of a recording, in order.

    A last piece shorter than `data.min_seconds` is left out; a recording shorter than a segment, or of unknown
    duration, is one segment that runs to its end.
    """
    length = data["segment_seconds"] and float(data["segment_seconds"])
    if length is None or duration is None or duration <= length:
        return [(0.0, None)]
    whole = int(duration / length + 1e-9)
    cuts: list[tuple[float, float | None]] = [(round(i * length, 6), length) for i in range(whole)]
    rest = round(duration - whole * length, 6)
    if rest >= data["min_seconds"]:
        cuts.append((round(whole * length, 6), rest))
    return cuts


def validate(data: Mapping[str, Any]) -> None:
    """Raises InputError where shares or lengths make no sense."""
    if not (data["valid"] >= 0 and data["test"] >= 0 and data["valid"] + data["test"] < 1):
        raise InputError(
            f"data.valid={data['valid']} and data.test={data['test']}: expected shares that leave some to train on"
        )
    if data["segment_seconds"] is not None and data["segment_seconds"] <= 0:
        raise InputError(
            f"data.segment_seconds={data['segment_seconds']}: expected seconds above 0, or null for whole files"
        )
    if data["min_seconds"] <= 0:
        raise InputError(f"data.min_seconds={data['min_seconds']}: expected seconds above 0")
