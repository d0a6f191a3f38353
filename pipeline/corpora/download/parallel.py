"""Many files at a time, and how far they are: bars on a terminal, else a line a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipeline.corpora.download.http import FetchError, RemoteFile

EVERY = 60.0  # seconds between lines where there is no terminal
Work = Callable[[RemoteFile, Callable[[int], None], threading.Event], str]


def download_all(remotes: Mapping[RemoteFile, int | None], work: Work, parallel: int) -> int:
    """Do `work` for every file, `parallel` at a time, tell how each ended, and return how many failed.

    remotes: their sizes in bytes, None where unknown. work: gets a file, what to tell how many bytes are there, and
    the event that ends it; returns how the file was verified, or raises FetchError.
    """
    stop, failed = threading.Event(), 0
    with _Board(remotes) as board, ThreadPoolExecutor(parallel) as pool:
        jobs = {pool.submit(work, remote, board.teller(remote), stop): remote for remote in remotes}
        try:
            for job in as_completed(jobs):
                try:
                    board.say(f"{jobs[job].path}: {job.result()}")
                except FetchError as error:
                    failed += 1
                    board.say(f"error: {error}")
                board.close(jobs[job])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # first: a worker that ends would begin another file
            stop.set()  # running transfers end at their next bytes, and keep them
            raise
    return failed


class _Board:
    """What is known of every file's progress."""

    def __init__(self, remotes: Mapping[RemoteFile, int | None]) -> None:
        self._sizes = dict(remotes)
        self._at = dict.fromkeys(remotes, 0)
        self._lock = threading.Lock()
        self._tasks: dict[RemoteFile, Any] = {}
        self._bars = _bars() if sys.stderr.isatty() and remotes else None
        self._told = time.monotonic()

    def __enter__(self) -> _Board:
        if self._bars:
            known = all(size is not None for size in self._sizes.values())
            total = sum(size or 0 for size in self._sizes.values()) if known else None
            self._all = self._bars.add_task("all", total=total)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def teller(self, remote: RemoteFile) -> Callable[[int], None]:
        return lambda position: self._tell(remote, position)

    def _tell(self, remote: RemoteFile, position: int) -> None:
        with self._lock:
            self._at[remote] = position
            done = sum(self._at.values())
            if self._bars:
                if remote not in self._tasks:
                    self._tasks[remote] = self._bars.add_task(remote.path.name, total=self._sizes[remote])
                self._bars.update(self._tasks[remote], completed=position)
                self._bars.update(self._all, completed=done)
            elif time.monotonic() - self._told >= EVERY:
                self._told = time.monotonic()
                total = sum(size or 0 for size in self._sizes.values())
                print(f"{done / 1e9:,.2f} of {total / 1e9:,.2f} GB", file=sys.stderr, flush=True)

    def close(self, remote: RemoteFile) -> None:
        with self._lock:
            if self._bars and remote in self._tasks:
                self._bars.remove_task(self._tasks[remote])

    def say(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
