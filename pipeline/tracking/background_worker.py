"""Background worker: a thread that runs jobs. `submit` never blocks and never raises."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.common.errors import one_line

log = logging.getLogger(__name__)
Target = TypeVar("Target")


class BackgroundWorker(Generic[Target]):
    """A thread that opens a slow or unreliable target, and runs jobs with it, quick ones first.

    Each kind of error is logged once. Jobs that do not fit into the queue are dropped, which is also logged once.
    """

    def __init__(
        self,
        name: str,
        open_target: Callable[[], Target],
        max_jobs: int,
        on_idle: Callable[[], None],
        idle_seconds: float,
    ) -> None:
        """Start the thread.

        Args:
            name: A name for messages.
            open_target: Returns the target; called once, in the thread.
            max_jobs: The number of jobs that may wait.
            on_idle: Called between jobs, and every `idle_seconds` while there are none.
            idle_seconds: See `on_idle`.
        """
        self.name, self._open_target, self._on_idle, self._idle_seconds = name, open_target, on_idle, idle_seconds
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[Target], object] | None]] = queue.PriorityQueue(
            max_jobs
        )
        self._count = itertools.count()
        self._logged: set[str] = set()
        self._is_abandoned = False  # after a timeout: later errors are a consequence of it
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def had_errors(self) -> bool:
        """Whether an error was logged."""
        return bool(self._logged)

    def submit(self, job: Callable[[Target], object], slow: bool = False) -> None:
        """Queue a job and return at once. Slow jobs run when no others wait."""
        try:
            self._jobs.put_nowait((int(slow), next(self._count), job))
        except queue.Full:
            self._log_once("queue full", f"{self.name} is too slow: some of its data is dropped")

    def close(self, last_job: Callable[[Target], object], timeout: float) -> bool:
        """Run the waiting jobs and a last one. Returns whether all finished within `timeout` seconds."""
        end = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            for job in (last_job, None):
                self._jobs.put((2, next(self._count), job), timeout=max(0.0, end - time.monotonic()))
            self._thread.join(max(0.0, end - time.monotonic()))
        self._is_abandoned = self._thread.is_alive()
        return not self._is_abandoned

    def _run(self) -> None:
        target: Target | None = None
        try:
            target = self._open_target()
        except BaseException as error:  # also SystemExit, which must not end this process
            self._log_error(error)
        while True:
            try:
                _, _, job = self._jobs.get(timeout=self._idle_seconds)
            except queue.Empty:
                self._on_idle()
                continue
            if job is None:
                return
            if target is not None:
                try:
                    job(target)
                except BaseException as error:
                    self._log_error(error)
            self._on_idle()

    def _log_error(self, error: BaseException) -> None:
        kind = type(error).__name__
        self._log_once(kind, f"{self.name} failed, training continues: {kind}: {one_line(error):.300}")

    def _log_once(self, kind: str, message: str) -> None:
        if kind not in self._logged and not self._is_abandoned:
            self._logged.add(kind)
            log.warning("%s", message)
