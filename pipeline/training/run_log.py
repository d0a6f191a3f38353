"""The log of a training run: terminal and log.txt, without secrets."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from pipeline.common.errors import redact


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
    for handler in (_TerminalHandler(sys.stdout), file_handler):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    for name in ("httpx", "DeepSpeed", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output until its reader or terminal is closed; log.txt has every line."""

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
