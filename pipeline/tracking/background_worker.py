"""Work done aside: jobs for a thread of their own, so that whoever hands them over never waits and never fails."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
Target = TypeVar("Target")


class BackgroundWorker(Generic[Target]):
    """A thread that opens something slow and fallible (`open()`), and does jobs with it: quick ones first.

    What goes wrong is logged once for each kind of error; what does not fit the queue is dropped, and that logged once.
    """

    def __init__(
        self, name: str, open: Callable[[], Target], depth: int, watch: Callable[[], None], every: float
    ) -> None:
        """name: for messages. depth: jobs that may wait. watch: called in between, some `every` seconds."""
        self.name, self._open, self._watch, self._every = name, open, watch, every
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[Target], None] | None]] = queue.PriorityQueue(depth)
        self._count = itertools.count()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def had_errors(self) -> bool:
        """Whether anything went wrong."""
        return bool(self._said)

    def submit(self, job: Callable[[Target], None], slow: bool = False) -> None:
        """Have a job done sometime, a slow one when no other waits; returns at once."""
        try:
            self._jobs.put_nowait((int(slow), next(self._count), job))
        except queue.Full:
            self._once("behind", f"{self.name} is too slow to follow: some of what was meant for it is left out")

    def close(self, last: Callable[[Target], None], seconds: float) -> bool:
        """Do what waits and a last job; whether all of it was done within so many seconds."""
        end = time.monotonic() + seconds
        for job in (last, None):
            try:
                self._jobs.put((2, next(self._count), job), timeout=max(0.0, end - time.monotonic()))
            except queue.Full:
                return False
        self._thread.join(max(0.0, end - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        target: Target | None = None
        try:
            target = self._open()
        except BaseException as error:  # SystemExit too: a library's exit must not be ours
            self._failed(error)
        while True:
            try:
                _, _, job = self._jobs.get(timeout=self._every)
            except queue.Empty:
                self._watch()
                continue
            if job is None:
                return
            if target is not None:
                try:
                    job(target)
                except BaseException as error:
                    self._failed(error)
            self._watch()

    def _failed(self, error: BaseException) -> None:
        said = " ".join(str(error).split()) or "no reason given"
        self._once(type(error).__name__, f"{self.name} failed, training goes on: {type(error).__name__}: {said:.300}")

    def _once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s", message)
