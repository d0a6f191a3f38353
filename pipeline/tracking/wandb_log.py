"""What W&B has been told already, read back from the files that it keeps in a run folder.

A `.wandb` file is a log in LevelDB's format: after 7 bytes of header, blocks of 32 KiB that hold pieces of records,
each behind its checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last). A record is protobuf.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _PIECE = 32768, 7, 7
STEP = "trainer/step"


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, as `wandb.proto.wandb_internal_pb2.Record`; a torn end ends them."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data in _logged(file.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        yield record


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that were logged, with W&B's own names (`_timestamp`...) among ours; of a table or sound its parts."""
    for record in records(file):
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def files(folder: Path, run_id: str) -> list[Path]:
    """The `.wandb` files of a run below its run folder, oldest first: one for each time that it was started."""
    return sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"), key=lambda file: file.parent.name.split("-")[-2])


def last_logged_steps(folder: Path, run_id: str) -> dict[str, int]:
    """Of each name that W&B has been told of, the last step."""
    told: dict[str, int] = {}
    for file in files(folder, run_id):
        for row in rows(file):
            for name in row:
                name = name.removesuffix("/_type")  # of a table, a sound
                told[name] = max(told.get(name, -1), row.get(STEP, -1))
    return told


def _logged(data: bytes) -> Iterator[bytes]:
    place, pieces = _HEADER, b""
    while place + _PIECE <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PIECE:  # too short for a piece's head: filled with zeros
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0 or place + _PIECE + size > len(data):
            return
        piece = data[place + _PIECE : place + _PIECE + size]
        place += _PIECE + size
        pieces = piece if kind in (1, 2) else pieces + piece
        if kind in (1, 4):
            yield pieces
