"""Processes that decode clips ahead of an encoder.

A job is a run of consecutive clips of a shard. A worker decodes it and sends it in batches. What a batch contains
depends on the plan alone, not on which worker is first. A worker that is ahead waits with one batch, so memory is
bounded however long a file or a corpus is.

A decoder that crashes or hangs costs its clip only. The system ends a process that takes too long over one clip, and
another process replaces it. The rest of a dead worker's job is retried clip by clip; a clip is skipped when a worker
died on it alone, for the second time. Where processes cannot start, no clip is skipped: the run ends with an error.
"""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np

from pipeline.common import machine
from pipeline.common.errors import MachineError
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Job, Skipped, decode_job

_EXIT_GRACE_SECONDS = 5.0
_STARTED = "started"  # the first message of a worker
_MAX_FAILED_STARTS = 10  # workers in a row that may end before they start
_PLACEHOLDER = np.zeros(0, np.float32)  # in a message, for samples that are sent through shared memory
DecodeFunction = Callable[[Job, DecodeOptions], Iterator[DecodedBatch]]


def exit_with_parent() -> None:
    """End this process as soon as its parent has ended, even if the parent was killed. A thread watches it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker_loop(conn: Connection, options: DecodeOptions, decode: DecodeFunction) -> None:
    """The main function of a worker process: decodes the jobs that come through `conn` until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which ends this process
    machine.allow_ending_by_timer()
    exit_with_parent()
    conn.send(_STARTED)
    while (job := conn.recv()) is not None:
        is_unconfirmed = False
        for batch in decode(job, options):
            if is_unconfirmed:
                conn.recv()  # wait until the batch before was received: one decoded, one being sent, never more
            _send_batch(conn, batch)
            is_unconfirmed = True
        if is_unconfirmed:
            conn.recv()
        conn.send(None)


def _send_batch(conn: Connection, batch: DecodedBatch) -> None:
    """Send a batch through a pipe, and its samples through anonymous shared memory, which leaves nothing to clean up.

    Where a system has none, or a limit on files is too low for them, the samples are sent through the pipe too.
    """
    wavs = [clip.audio for clip in batch.clips if isinstance(clip.audio, np.ndarray)]
    with ExitStack() as stack:
        try:
            descriptor = os.memfd_create("audio")
            stack.callback(os.close, descriptor)
            with open(descriptor, "wb", closefd=False) as file:
                for wav in wavs:
                    file.write(wav.data)
        except (AttributeError, OSError):
            conn.send((batch, []))
            return
        conn.send((_with_audio(batch, itertools.repeat(_PLACEHOLDER)), [wav.shape for wav in wavs]))
        if wavs:
            send_handle(conn, descriptor, os.getppid())


def _receive_message(conn: Connection) -> DecodedBatch | str | None:
    """The next message of a worker: a batch, _STARTED, or None at the end of a job."""
    message: tuple[DecodedBatch, list[tuple[int, ...]]] | str | None = conn.recv()
    if not isinstance(message, tuple):
        return message
    batch, shapes = message
    if not shapes:
        return batch
    descriptor = recv_handle(conn)
    try:
        samples = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.float32)
    finally:
        os.close(descriptor)
    parts = np.split(samples, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return _with_audio(batch, (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def _with_audio(batch: DecodedBatch, wavs: Iterator[np.ndarray]) -> DecodedBatch:
    """The batch with other samples for the clips that have some."""
    clips = [clip if isinstance(clip.audio, Skipped) else replace(clip, audio=next(wavs)) for clip in batch.clips]
    return replace(batch, clips=clips)


class _DecodeWorker:
    """A worker process and its current job.

    has_started: whether it receives jobs yet. num_received: clips of the job that have been received from it.
    """

    def __init__(self, options: DecodeOptions, decode: DecodeFunction) -> None:
        context = multiprocessing.get_context("spawn")
        self.conn, worker_end = context.Pipe()
        self.process = context.Process(target=_worker_loop, args=(worker_end, options, decode), daemon=True)
        try:
            self.process.start()
        except OSError as error:
            hint = "give fewer decode_workers=, or decode_workers=0, and run the same command again"
            raise MachineError(f"a decode worker cannot be started ({error.strerror}): {hint}") from error
        worker_end.close()
        self.job: Job | None = None
        self.has_started, self.num_received = False, 0

    def submit(self, job: Job) -> None:
        self.job, self.num_received = job, 0
        with suppress(ConnectionError):  # a dead worker is noticed when its next message is read
            self.conn.send(job)

    def stop(self) -> int | None:
        """End the process, unless it has ended, and return its exit code."""
        self.process.join(_EXIT_GRACE_SECONDS)  # one whose pipe is closed is about to end with its own exit code
        self.process.kill()
        self.process.join()
        self.conn.close()
        return self.process.exitcode


class DecodeWorkerPool:
    """`count` processes that decode jobs; with a count of 0, the calling thread decodes them itself."""

    def __init__(self, count: int, options: DecodeOptions, decode: DecodeFunction = decode_job) -> None:
        self._options, self._decode_job = options, decode
        self._slow_files: dict[str, Skipped] = {}  # paths that took too long twice, and the reason
        self._failed_starts = 0  # workers in a row
        self._workers = [_DecodeWorker(options, decode) for _ in range(count)]

    def decode(self, inbox: Connection, request_job: Callable[[], Any]) -> Iterator[DecodedBatch]:
        """The decoded batches of all jobs, in any order.

        Args:
            inbox: Where jobs arrive, one for each call of `request_job`; None after the last.
            request_job: Asks for a job.

        Raises:
            MachineError: No worker can start.
        """
        if not self._workers:
            request_job()
            while (job := inbox.recv()) is not None:
                yield from self._decode_job(job, replace(self._options, timeout=0))  # this process must not end
                request_job()
            return
        jobs: deque[Job] = deque()
        has_more, is_requested = True, False
        while True:
            idle = [worker for worker in self._workers if worker.job is None]
            while idle and jobs:
                job = jobs.popleft()
                if job.is_retry and (reason := self._slow_files.get(job.clips[0].path)):
                    yield job.skip(reason)
                else:
                    idle.pop().submit(job)
            if idle and has_more and not is_requested:
                request_job()
                is_requested = True
            busy = {worker.conn: worker for worker in self._workers if worker.job is not None}
            if not busy and not has_more:
                return
            for ready in wait([*busy, *([inbox] if is_requested else [])]):
                if ready is inbox:
                    job, is_requested = inbox.recv(), False
                    jobs += [job] if job else []
                    has_more = job is not None
                else:
                    yield from self._handle_message(busy[ready], jobs)  # type: ignore[index]

    def _handle_message(self, worker: _DecodeWorker, jobs: deque[Job]) -> Iterator[DecodedBatch]:
        try:
            message = _receive_message(worker.conn)
        except (EOFError, OSError):  # it died, maybe in the middle of a message
            yield from self._handle_dead_worker(worker, jobs)
            return
        if isinstance(message, str):
            worker.has_started, self._failed_starts = True, 0
            return
        if message is None:
            worker.job = None
            return
        worker.num_received += len(message.clips)
        with suppress(ConnectionError):  # a dead worker is noticed when its next message is read
            worker.conn.send(None)
        yield message

    def _handle_dead_worker(self, worker: _DecodeWorker, jobs: deque[Job]) -> Iterator[DecodedBatch]:
        """Replace a dead worker, and retry the rest of its job clip by clip, to find the one that it died on."""
        job = worker.job
        assert job is not None
        code = worker.stop()
        self._workers[self._workers.index(worker)] = _DecodeWorker(self._options, self._decode_job)
        if not worker.has_started:
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                raise MachineError(
                    f"{_MAX_FAILED_STARTS} decode workers in a row ended before they started (exit code {code}): "
                    "give fewer decode_workers=, or decode_workers=0"
                )
            jobs.appendleft(job)
            return
        if worker.num_received == len(job.clips):
            return
        if job.is_retry:
            reason = self._skip_reason(code)
            if code == machine.TIMED_OUT:  # the other clips of the file would take as long, one by one
                self._slow_files[job.clips[0].path] = reason
            yield job.skip(reason)
        else:
            jobs.extendleft(job.single_clip(i) for i in reversed(range(worker.num_received, len(job.clips))))

    def _skip_reason(self, code: int | None) -> Skipped:
        if code == machine.TIMED_OUT:
            limit = f"decode_timeout={self._options.timeout:g}"
            return Skipped(f"too slow: reading it took more than {limit}, twice", retry=True)
        if code == machine.KILLED:
            killed = "the process that decodes it was killed twice, as by a machine out of memory"
            return Skipped(f"unreadable: {killed}", retry=True)
        reason = f"unreadable: it ends the process that decodes it (exit code {code})"
        return Skipped(reason, retry=code not in machine.CRASHED)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.process.kill()
            worker.stop()
