"""How far a run is: one bar on a terminal, else a line a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

EVERY = 60.0  # seconds between lines where there is no terminal


class Progress:
    """Counts clips and seconds of audio, and shows them. done: clips that were finished before this run."""

    def __init__(self, clips: int, done: int) -> None:
        self.clips, self.done, self.seconds = clips, done, 0.0
        self._start = self._told = time.monotonic()
        self._before = done
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._start = self._told = time.monotonic()
        if sys.stderr.isatty():
            self._bar, self._task = _bar(self.clips, self.done)
            self._bar.start()
        return self

    def advance(self, clips: int, seconds: float) -> None:
        """So many more clips, and seconds of audio, are through."""
        self.done += clips
        self.seconds += seconds
        now = time.monotonic()
        if self._bar is not None:
            told = f"{self.seconds / 3600:.2f} h of audio · {self.speed:,.0f} x real time"
            self._bar.update(self._task, completed=self.done, told=told)
        elif now - self._told >= EVERY:
            self._told = now
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def wall(self) -> float:
        """Seconds since the start."""
        return max(1e-9, time.monotonic() - self._start)

    @property
    def speed(self) -> float:
        """Seconds of audio a second."""
        return self.seconds / self.wall

    def line(self) -> str:
        """What the bar says, in words."""
        ours = self.done - self._before
        left = (self.clips - self.done) * self.wall / ours if ours else float("inf")
        return (
            f"{self.done:,} of {self.clips:,} clips · {self.seconds / 3600:.2f} h of audio · "
            f"{self.speed:,.0f} x real time · {_duration(left)} left"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(clips: int, done: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        *(BarColumn(), MofNCompleteColumn(), TextColumn("clips · {task.fields[told]} ·")),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    return bar, bar.add_task("", total=clips, completed=done, told="")


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
