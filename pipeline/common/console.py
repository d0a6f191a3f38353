"""Console output: errors, log lines and progress, all on standard error."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType
from typing import Any

from pipeline.common.errors import redact

COLUMNS = 80  # of a terminal
LINE_INTERVAL = 60.0  # seconds between progress lines where standard error is not a terminal


def print_error(message: str) -> None:
    """Print an error that ends the command or skips a part of its work, without secrets."""
    print(f"error: {redact(message)}", file=sys.stderr, flush=True)


def print_next(command: Sequence[str]) -> None:
    """Print the command that usually comes next, on standard output, in lines of at most 80 columns where it can."""
    lines = ["next:"]
    for argument in map(shlex.quote, command):
        if len(lines[-1]) + len(argument) + 3 > COLUMNS and lines[-1].strip():
            lines.append("     ")
        lines[-1] += f" {argument}"
    print(" \\\n".join(lines))


def print_log(line: str) -> None:
    """Print a line about the progress of the work."""
    print(line, file=sys.stderr, flush=True)


class ProgressDisplay:
    """Progress bars on a terminal; otherwise one line a minute. Threads may share it.

    Args:
        columns: Returns the columns of `rich.progress` for each bar; called only on a terminal, since rich is slow to
            import.
    """

    def __init__(self, columns: Callable[[], Sequence[Any]]) -> None:
        self._lock = threading.RLock()
        self._bars = _rich_progress(columns()) if sys.stderr.isatty() else None
        self._tasks: dict[Hashable, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._last_line = time.monotonic()
        with self._until_terminal_closes():
            if self._bars is not None:
                self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._until_terminal_closes():
            if self._bars is not None:
                self._bars.stop()

    @contextlib.contextmanager
    def _until_terminal_closes(self) -> Iterator[None]:
        """Show no bars any more after an OSError: nobody reads a closed terminal, and the work continues."""
        try:
            yield
        except OSError:
            bars, self._bars = self._bars, None
            with contextlib.suppress(OSError):  # it restores sys.stdout and sys.stderr before it writes
                if bars is not None:
                    bars.stop()

    def update(self, key: Hashable, completed: float, total: float | None, label: str = "", **fields: str) -> None:
        """Move the bar of `key`, which is added at its first update. label, fields: texts for its columns."""
        with self._lock, self._until_terminal_closes():
            if self._bars is None:
                return
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(label, total=total, **fields)
            self._bars.update(self._tasks[key], completed=completed, **fields)

    def remove(self, key: Hashable) -> None:
        """Remove the bar of `key`, if there is one."""
        with self._lock, self._until_terminal_closes():
            if self._bars is not None and key in self._tasks:
                self._bars.remove_task(self._tasks.pop(key))

    def print_line(self, line: Callable[[], str]) -> None:
        """Print `line()` if there are no bars and the last line was printed a minute ago or more."""
        with self._lock:
            if self._bars is None and time.monotonic() - self._last_line >= LINE_INTERVAL:
                self._last_line = time.monotonic()
                print_log(line())

    def log(self, line: str) -> None:
        """Print a line, above the bars."""
        with self._until_terminal_closes():
            if self._bars is not None:
                self._bars.console.print(line, markup=False, highlight=False)
            else:
                print_log(line)


def _rich_progress(columns: Sequence[Any]) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True))


def format_duration(seconds: float) -> str:
    """A time in its two largest units: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`; `?` if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if days else f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
