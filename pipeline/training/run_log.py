"""The log of a training: to the terminal and to log.txt, without secrets."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from pipeline.common.errors import redact


def open_log(file: Path | None) -> None:
    """Send the log to the terminal and a file, both in place of earlier ones; without a file, only warnings are shown.

    Args:
        file: log.txt of the run, on the first rank.
    """
    root = logging.getLogger()
    root.setLevel(logging.WARNING if file is None else logging.INFO)
    if file is None:
        return
    root.handlers.clear()  # of an earlier run of a sweep in this process
    formatter = RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S")
    to_file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    for handler in (_TerminalHandler(sys.stdout), to_file):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    for noisy in ("httpx", "DeepSpeed", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output until its reader or terminal has gone; log.txt has every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a record could not be written."""
        if isinstance(sys.exc_info()[1], OSError):
            logging.getLogger().removeHandler(self)
        else:
            super().handleError(record)


class RedactingFormatter(logging.Formatter):
    """Lines of the log, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
