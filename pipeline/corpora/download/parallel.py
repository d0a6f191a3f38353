"""Downloads files in parallel and shows the progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
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
    with ProgressDisplay(_columns) as display, ThreadPoolExecutor(parallel) as pool:
        report = _reporter(display, remotes)
        jobs = {pool.submit(work, remote, partial(report, remote), stop): remote for remote in remotes}
        try:
            for job in as_completed(jobs):
                try:
                    display.log(f"{jobs[job].path}: {job.result()}")
                except DownloadError as error:
                    failed += 1
                    display.log(f"error: {error}")
                display.remove(jobs[job])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # first, or a worker that ends would start another file
            stop.set()  # running downloads stop after their next chunk and can be resumed
            raise
    return failed


def _reporter(display: ProgressDisplay, sizes: Mapping[RemoteFile, int | None]) -> Callable[[RemoteFile, int], None]:
    """A function that receives how many bytes of a file are on disk, and shows them and those of all files."""
    positions = dict.fromkeys(sizes, 0)
    total = sum(size or 0 for size in sizes.values())

    def report(remote: RemoteFile, position: int) -> None:
        positions[remote] = position
        done = sum(positions.values())
        display.update("all", done, None if None in sizes.values() else total, label="all")
        display.update(remote, position, sizes[remote], label=remote.path.name)
        display.print_line(lambda: f"{done / 1e9:,.2f} of {total / 1e9:,.2f} GB")

    return report


def _columns() -> tuple[Any, ...]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
