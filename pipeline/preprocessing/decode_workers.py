"""Clips decoded ahead of the encoder, by processes of their own.

A job is a stretch of a shard's clips; a reader decodes it and hands it over in parts of one batch each. What a part
holds follows from the plan alone, whichever reader is first; a reader that is ahead waits with one part in hand, so
memory stays the same however long a file or a corpus is. A decoder that takes its process down, or hangs, costs that
clip only: the system ends a process that is at one clip for too long, and another process takes its place. What a dead
process was at is tried again clip by clip; a clip is given up when it was alone, and for the second time. Where a
process cannot begin, or cannot pass on what it has decoded, no clip is skipped: the run ends.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np

from pipeline.common.errors import MachineError
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Job, Skipped, decode_job

CRASH_EXIT_CODES = {
    -signal.SIGSEGV,
    -signal.SIGABRT,
    -signal.SIGFPE,
    -signal.SIGILL,
}  # exit codes of a decoder with a bug
_EXIT_GRACE_SECONDS = 5.0  # seconds
_STARTED = "begun"  # a reader's first word
_MAX_FAILED_STARTS = 10  # readers in a row that may end before they begin
_PLACEHOLDER = np.zeros(0, np.float32)  # stands in a message for samples that come another way


@dataclass(frozen=True)
class SendError:
    """A reader's last word: it has decoded a part and cannot pass it on. reason: the system's."""

    reason: str


def exit_with_parent() -> None:
    """End this process when the one that started it is gone, even killed: a thread watches."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker_loop(
    jobs: Connection, how: DecodeOptions, read: Callable[[Job, DecodeOptions], Iterator[DecodedBatch]]
) -> None:
    """What a reader process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends us
    exit_with_parent()
    jobs.send(_STARTED)
    while (job := jobs.recv()) is not None:
        waiting = False
        for part in read(job, how):
            if waiting:
                jobs.recv()  # the part before has been taken: one in hand, one on its way, never more
            if not _send_batch(jobs, part):
                return
            waiting = True
        if waiting:
            jobs.recv()
        jobs.send(None)


def _send_batch(conn: Connection, part: DecodedBatch) -> bool:
    """A part through a pipe, its sound through shared memory without a name: nothing to clean up, no /dev/shm full.

    False where there is no memory for it, or a limit on files forbids it: the other end is told.
    """
    wavs = [heard for heard in part.clips if isinstance(heard, np.ndarray)]
    if not wavs or not hasattr(os, "memfd_create"):
        conn.send((part, None))
        return True
    try:
        descriptor = _to_memory_file(wavs)
    except OSError as error:
        conn.send(SendError(error.strerror or str(error)))
        return False
    try:
        conn.send(
            (
                replace(part, clips=[h if isinstance(h, Skipped) else _PLACEHOLDER for h in part.clips]),
                [*map(len, wavs)],
            )
        )
        send_handle(conn, descriptor, os.getppid())
    finally:
        os.close(descriptor)
    return True


def _to_memory_file(wavs: list[np.ndarray]) -> int:
    """A file without a name that holds the samples; its descriptor."""
    descriptor = os.memfd_create("part")
    try:
        with open(descriptor, "wb", closefd=False) as block:
            for wav in wavs:
                block.write(wav.data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _receive_message(conn: Connection) -> DecodedBatch | SendError | str | None:
    """What `_send` sent; None for the end of a job; _BEGUN."""
    message = conn.recv()
    if message is None or message == _STARTED or isinstance(message, SendError):
        return message
    part, lengths = message
    if lengths is None:
        return part
    descriptor = recv_handle(conn)
    try:
        block = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.float32)
    finally:
        os.close(descriptor)
    wavs = iter(np.split(block, np.cumsum(lengths)[:-1]))
    return replace(part, clips=[clip if isinstance(clip, Skipped) else next(wavs) for clip in part.clips])


class _DecodeWorker:
    """A reader process and the job it is at. begun: whether it reads jobs yet; done: clips of its job that arrived."""

    def __init__(self, how: DecodeOptions, read: Callable[[Job, DecodeOptions], Iterator[DecodedBatch]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.conn, theirs = context.Pipe()
        self.process = context.Process(target=_worker_loop, args=(theirs, how, read), daemon=True)
        try:
            self.process.start()
        except OSError as error:
            hint = "give fewer decode_workers=, or decode_workers=0, and run the same command again"
            raise MachineError(f"a reader process cannot be started ({error.strerror}): {hint}") from error
        theirs.close()
        self.job: Job | None = None
        self.has_started, self.num_received = False, 0

    def submit(self, job: Job) -> None:
        self.job, self.num_received = job, 0
        with suppress(ConnectionError):  # a reader that died is buried when it is heard next
            self.conn.send(job)

    def stop(self) -> int | None:
        """End the process, unless it has ended; the exit code."""
        self.process.join(_EXIT_GRACE_SECONDS)  # one whose pipe has closed is about to end with a code of its own
        self.process.kill()
        self.process.join()
        self.conn.close()
        return self.process.exitcode


class DecodeWorkerPool:
    """`count` processes that decode jobs; with a count of 0, the calling thread does. read: what decodes a job."""

    def __init__(
        self, count: int, how: DecodeOptions, read: Callable[[Job, DecodeOptions], Iterator[DecodedBatch]] = decode_job
    ) -> None:
        self._how, self._read = how, read
        self._slow_files: dict[str, Skipped] = {}  # paths that were given up, and why
        self._failed_starts = 0  # readers in a row
        self._workers = [_DecodeWorker(how, read) for _ in range(count)]

    def decode(self, inbox: Connection, want: Callable[[], Any]) -> Iterator[DecodedBatch]:
        """The jobs that come in, decoded, their parts in any order. `want` asks for a job each; None ends them.

        Raises MachineError where no reader can so much as begin, or pass on what it has decoded.
        """
        if not self._workers:
            want()
            while (job := inbox.recv()) is not None:
                yield from self._read(job, replace(self._how, timeout=0))  # this process must not end
                want()
            return
        jobs: deque[Job] = deque()
        more, asked = True, False
        while True:
            idle = [reader for reader in self._workers if reader.job is None]
            while idle and jobs:
                job = jobs.popleft()
                if job.is_retry and (reason := self._slow_files.get(job.clips[0].clip.path)):
                    yield DecodedBatch(job.shard, job.first, [reason], job.embed_only)
                else:
                    self._ensure_alive(idle.pop()).submit(job)
            if idle and more and not asked:
                want()
                asked = True
            busy = {reader.conn: reader for reader in self._workers if reader.job is not None}
            if not busy and not more:
                return
            for ready in wait([*busy, *([inbox] if asked else [])]):
                if ready is inbox:
                    given, asked = inbox.recv(), False
                    jobs += [given] if given else []
                    more = given is not None
                else:
                    yield from self._handle_message(busy[ready], jobs)  # type: ignore[index]

    def _ensure_alive(self, reader: _DecodeWorker) -> _DecodeWorker:
        """The reader, or another in its place if it died while it had nothing to do."""
        if reader.process.is_alive():
            return reader
        reader.stop()
        return self._replace_worker(reader)

    def _replace_worker(self, reader: _DecodeWorker) -> _DecodeWorker:
        other = _DecodeWorker(self._how, self._read)
        self._workers[self._workers.index(reader)] = other
        return other

    def _handle_message(self, reader: _DecodeWorker, jobs: deque[Job]) -> Iterator[DecodedBatch]:
        try:
            part = _receive_message(reader.conn)
        except (EOFError, OSError):  # it died, maybe in the middle of a message
            yield from self._handle_dead_worker(reader, jobs)
            return
        if isinstance(part, SendError):
            raise MachineError(
                f"decoded sound cannot be passed on from a reader process ({part.reason}): raise the limits on file "
                "size and memory (ulimit -a), or give decode_workers=0, and run the same command again"
            )
        if isinstance(part, str):
            reader.has_started, self._failed_starts = True, 0
            return
        if part is None:
            reader.job = None
            return
        reader.num_received += len(part.clips)
        with suppress(ConnectionError):  # a reader that died is buried when it is heard next
            reader.conn.send(None)
        yield part

    def _handle_dead_worker(self, reader: _DecodeWorker, jobs: deque[Job]) -> Iterator[DecodedBatch]:
        """A reader died: put another in its place, and try the rest of its job clip by clip, to find the culprit."""
        job = reader.job
        assert job is not None
        code = reader.stop()
        if not reader.has_started:
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                raise MachineError(
                    f"{_MAX_FAILED_STARTS} decode workers in a row ended before they started (exit code {code}): "
                    "give fewer "
                    "decode_workers=, or decode_workers=0"
                )
            self._replace_worker(reader)
            jobs.appendleft(job)
            return
        self._replace_worker(reader)
        if reader.num_received == len(job.clips):
            return
        if job.is_retry:
            reason = self._skip_reason(code)
            if code == -signal.SIGALRM:  # the other clips of a file would take as long, one by one
                self._slow_files[job.clips[0].clip.path] = reason
            yield DecodedBatch(job.shard, job.first, [reason], job.embed_only)
        else:
            jobs.extendleft(job.single_clip(i) for i in reversed(range(reader.num_received, len(job.clips))))

    def _skip_reason(self, code: int | None) -> Skipped:
        if code == -signal.SIGALRM:
            return Skipped(
                f"too slow: reading it took more than decode_timeout={self._how.timeout:g}, twice", retry=True
            )
        if code == -signal.SIGKILL:
            killed = "the process that decodes it was killed twice, as by a machine out of memory"
            return Skipped(f"unreadable: {killed}", retry=True)
        return Skipped(
            f"unreadable: it ends the process that decodes it (exit code {code})", retry=code not in CRASH_EXIT_CODES
        )

    def close(self) -> None:
        """End the processes."""
        for reader in self._workers:
            reader.process.kill()
            reader.stop()
