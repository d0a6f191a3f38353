"""Downloads files in parallel and shows the progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any

from pipeline.common.console import ProgressDisplay
from pipeline.corpora.base import RemoteFile
from pipeline.corpora.download.http import DownloadError

Work = Callable[[RemoteFile, Callable[[int], None], threading.Event], str]


def download_all(remotes: Mapping[RemoteFile, int | None], work: Work, parallel: int) -> int:
    """Run `work` for every file, `parallel` at a time, log the result of each, and return how many failed.

    Args:
        remotes: The files and their sizes in bytes, None if unknown.
        work: Receives a file, a function to report the bytes on disk to, and an event that stops it. Returns how the
            file was verified, or raises DownloadError.
        parallel: The number of files at a time.
    """
    if not remotes:
        return 0
    stop, failed = threading.Event(), 0
    with _Board(remotes) as board, ThreadPoolExecutor(parallel) as pool:
        jobs = {pool.submit(work, remote, board.reporter(remote), stop): remote for remote in remotes}
        try:
            for job in as_completed(jobs):
                try:
                    board.log(f"{jobs[job].path}: {job.result()}")
                except DownloadError as error:
                    failed += 1
                    board.log(f"error: {error}")
                board.close(jobs[job])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # first, or a worker that ends would start another file
            stop.set()  # running downloads stop after their next chunk and can be resumed
            raise
    return failed


class _Board:
    """Shows the progress of every file and of all together."""

    def __init__(self, remotes: Mapping[RemoteFile, int | None]) -> None:
        self._sizes = dict(remotes)
        self._positions = dict.fromkeys(remotes, 0)
        self._total = sum(size or 0 for size in remotes.values())
        self._is_total_known = None not in remotes.values()
        self._lock = threading.Lock()
        self._display = ProgressDisplay(_columns)

    def __enter__(self) -> _Board:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def reporter(self, remote: RemoteFile) -> Callable[[int], None]:
        """A function that receives how many bytes of a file are on disk."""
        return lambda position: self._report(remote, position)

    def _report(self, remote: RemoteFile, position: int) -> None:
        with self._lock:
            self._positions[remote] = position
            done = sum(self._positions.values())
        self._display.update("all", done, self._total if self._is_total_known else None, label="all")
        self._display.update(remote, position, self._sizes[remote], label=remote.path.name)
        self._display.print_line(lambda: f"{done / 1e9:,.2f} of {self._total / 1e9:,.2f} GB")

    def close(self, remote: RemoteFile) -> None:
        """Remove the bar of a file."""
        self._display.remove(remote)

    def log(self, line: str) -> None:
        """Print a line at once."""
        self._display.log(line)


def _columns() -> tuple[Any, ...]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
