"""Progress of preprocessing: clips, hours of audio, speed and time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from pipeline.common.console import ProgressDisplay, format_duration


class Progress:
    """Counts clips and seconds of audio, and shows them.

    Args:
        clips: Number of clips in the plan.
        done: Number of clips that earlier runs finished.
    """

    def __init__(self, clips: int, done: int) -> None:
        self.clips, self.done, self.seconds = clips, done, 0.0
        self._start = time.monotonic()
        self._done_before = done
        self._display = ProgressDisplay(_columns)

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._display.__enter__()
        self._update_bar()
        return self

    def advance(self, clips: int, seconds: float) -> None:
        """Count clips that are finished, and their seconds of audio."""
        self.done += clips
        self.seconds += seconds
        self._update_bar()
        self._display.print_line(self.line)

    def _update_bar(self) -> None:
        summary = f"{self.seconds / 3600:.2f} h of audio · {self.speed:,.0f} x real time" if self.seconds else ""
        self._display.update("clips", self.done, self.clips, summary=summary)

    @property
    def wall(self) -> float:
        """Seconds since the start."""
        return max(1e-9, time.monotonic() - self._start)

    @property
    def speed(self) -> float:
        """Seconds of audio per second."""
        return self.seconds / self.wall

    def line(self) -> str:
        """The content of the bar as one line of text."""
        done_now = self.done - self._done_before
        left = (self.clips - self.done) * self.wall / done_now if done_now else float("inf")
        return (
            f"{self.done:,} of {self.clips:,} clips · {self.seconds / 3600:.2f} h of audio · "
            f"{self.speed:,.0f} x real time · {format_duration(left)} left"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)


def _columns() -> tuple[Any, ...]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return (
        *(BarColumn(), MofNCompleteColumn(), TextColumn("clips · {task.fields[summary]} ·")),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
