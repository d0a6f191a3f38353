"""`metrics.jsonl` of a run: its writer and its reader. It may be incomplete after a crash, or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.files import write_atomic

METRICS = "metrics.jsonl"
_LARGEST_STEP = 2**53
_LARGEST = 1e100  # of a value; larger ones cannot be plotted


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics: each has `step`, a count, and numbers by name.

    A row without a valid step is skipped, and so is a value that is not a finite number.
    """
    rows = []
    for line in _lines(run / METRICS):
        row = _parse(line)
        if row is not None and (step := _step(row)) is not None:
            values = {name: value for name, value in row.items() if _is_number(value)}
            rows.append({**values, "step": step})
    return rows


class MetricsWriter:
    """Appends rows to the metrics of a run. Its methods raise OSError if the disk refuses a row."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the file of a run that starts or resumes at `step`.

        Incomplete rows are removed, and those of later steps, which a resumed run writes again.
        """
        _cut(run / METRICS, step)
        self._file = (run / METRICS).open("a", buffering=1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row; values that are not finite are null, since JSON has no NaN."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut(path: Path, step: int) -> None:
    rows = [(line, _parse(line)) for line in _lines(path)]
    kept = b"".join(line + b"\n" for line, row in rows if row is not None and not _is_after(row, step))
    if rows and kept != path.read_bytes():  # also if the last line has no newline: the next row would continue it
        write_atomic(path, kept)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row of a line, or None if it is not valid."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _step(row: dict[str, Any]) -> int | None:
    step = row.get("step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    return step if type(step) is int and 0 <= step <= _LARGEST_STEP else None


def _is_after(row: dict[str, Any], step: int) -> bool:
    row_step = row.get("step")
    return isinstance(row_step, (int, float)) and not row_step <= step  # NaN is after any step


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= _LARGEST
    except OverflowError:  # an integer beyond floating point
        return False
