"""The log of a training run: terminal and log.txt, without secrets; and the progress of its steps."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.common.console import ProgressDisplay, format_duration
from pipeline.common.errors import redact

log = logging.getLogger("pipeline")


def open_log(file: Path | None) -> None:
    """Send the log to the terminal and to a file instead of earlier ones.

    Args:
        file: log.txt of the run, on the first rank; None on the others, which log only warnings.
    """
    root = logging.getLogger()
    root.setLevel(logging.WARNING if file is None else logging.INFO)
    if file is None:
        return
    root.handlers.clear()  # of an earlier run of a sweep in this process
    formatter = RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S")
    file_handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    for handler in (_TerminalHandler(), file_handler):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    for name in ("httpx", "DeepSpeed", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output until its reader or terminal is closed; log.txt has every line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a progress bar replaces `sys.stdout`, so that lines are above it."""
        self.stream = sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop writing to the terminal after an OSError."""
        if isinstance(sys.exc_info()[1], OSError):
            logging.getLogger().removeHandler(self)
        else:
            super().handleError(record)


class RedactingFormatter(logging.Formatter):
    """Formats log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class StepProgress:
    """Steps and time left: a bar on a terminal, a line after the first step elsewhere.

    The time left is that of the remaining steps at the mean speed so far, with validations and checkpoints; the first
    step, in which the model may be compiled, counts only until there is a second one.
    """

    def __init__(self, done: int, steps: int, is_main: bool) -> None:
        """Prepare a run of which `done` of its steps are done."""
        self.steps, self._is_main, self._done = steps, is_main, done
        self._step = self._first = done
        self._time = self._first_time = time.monotonic()
        self._has_bar = is_main and sys.stdout.isatty() and sys.stderr.isatty()
        self._display = ProgressDisplay(_columns)

    def start(self) -> None:
        """Start the bar, and measure time from now on."""
        self._first_time = time.monotonic()
        if self._has_bar:
            self._display.__enter__()
            self._display.update("steps", self._step, self.steps, left="")

    def stop(self) -> None:
        """Remove the bar."""
        if self._has_bar:
            self._display.__exit__(None, None, None)

    def update(self, step: int) -> None:
        """Count a step that is done."""
        if self._step == self._done + 1:
            self._first, self._first_time = self._step, self._time
        is_first = self._step == self._done
        self._step, self._time = step, time.monotonic()
        if self._has_bar:
            self._display.update("steps", step, self.steps, left=self.time_left())
        elif is_first and self._is_main:
            seconds = self._time - self._first_time
            log.info("step %d/%d  the first step took %.1f s  %s", step, self.steps, seconds, self.time_left())

    def time_left(self) -> str:
        """`eta 3 h 12 min`; empty when no step is left or none was measured."""
        timed, left = self._step - self._first, self.steps - self._step
        if timed < 1 or left < 1:
            return ""
        return f"eta {format_duration((self._time - self._first_time) / timed * left)}"


def _columns() -> Sequence[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    return BarColumn(), MofNCompleteColumn(), TextColumn("steps  {task.fields[left]}")
