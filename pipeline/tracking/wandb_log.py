"""What was logged to W&B, read from the files that it writes to a run folder.

A `.wandb` file is a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB with pieces of records. Each
piece has a checksum (4 bytes), a length (2) and a kind (1: complete, 2: first, 3: middle, 4: last). Records are
protobuf messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _PIECE = 32768, 7, 7
STEP = "trainer/step"


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file (`wandb.proto.wandb_internal_pb2.Record`), up to an incomplete one."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data in _read_log(file.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        yield record


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The logged rows, with W&B's own names such as `_timestamp`. A table or sound has one name for each part."""
    for record in records(file):
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def files(folder: Path, run_id: str) -> list[Path]:
    """The `.wandb` files of a run in its run folder, oldest first: one for each start."""
    return sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"), key=lambda file: file.parent.name.split("-")[-2])


def last_logged_steps(folder: Path, run_id: str) -> dict[str, int]:
    """The last logged step of each metric."""
    last_steps: dict[str, int] = {}
    for file in files(folder, run_id):
        for row in rows(file):
            for name in row:
                name = name.removesuffix("/_type")  # a table or a sound
                last_steps[name] = max(last_steps.get(name, -1), row.get(STEP, -1))
    return last_steps


def _read_log(data: bytes) -> Iterator[bytes]:
    position, pieces = _HEADER, b""
    while position + _PIECE <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PIECE:  # too short for another piece: padded with zeros
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if kind == 0 or position + _PIECE + size > len(data):
            return
        piece = data[position + _PIECE : position + _PIECE + size]
        position += _PIECE + size
        pieces = piece if kind in (1, 2) else pieces + piece
        if kind in (1, 4):
            yield pieces
