"""Hashes of the audio of whole recordings, by which copies are found.

A worker process decodes, so that a decoder that hangs or crashes costs its recording only.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

from pipeline.audio import audio_io
from pipeline.common import machine
from pipeline.corpora import Clip
from pipeline.preprocessing.decode import (
    DecodedBatch,
    DecodedClip,
    DecodeOptions,
    Job,
    Skipped,
    read_error,
)
from pipeline.preprocessing.decode_workers import DecodeWorkerPool

MAX_FRAMES_PER_BYTE = 8192  # FLAC and Opus store silence in less, but a header that claims more is wrong
HASH_RATE = 24_000  # Hz at which all audio is hashed, whatever the codec's rate
Measure = Callable[[str | bytes], str | None]


def hash_audio(source: str | bytes) -> str | None:
    """A hash of the decoded audio of a whole recording, in constant memory; None where it cannot be decoded."""
    total = hashlib.blake2b(digest_size=16)
    cuts = ((10.0 * i, 10.0) for i in itertools.count())
    try:
        for wav in audio_io.read_segments(source, cuts, rate=HASH_RATE, keep_truncated=True):
            total.update(wav.data)
    except audio_io.AudioError as error:
        if not error.reason.startswith("empty"):  # the first cut past the end
            return None
    return total.hexdigest()


class MeasuredDurations:
    """Durations of files, counted rather than estimated. keep_truncated: whether truncated files are used."""

    def __init__(self, keep_truncated: bool) -> None:
        self._keep_truncated = keep_truncated
        self.kind = "seconds-kept" if keep_truncated else "seconds"

    def __call__(self, path: str) -> float | None:
        """Seconds of audio in a file; None where reading it will fail. Raises OSError where it cannot be opened."""
        size = os.stat(path).st_size  # noqa: PTH116
        try:
            info = audio_io.info(path, keep_truncated=self._keep_truncated)
        except audio_io.AudioError as error:
            if error.reason.startswith("missing"):
                raise OSError(error.reason) from error
            return None
        return (round(info.seconds, 6) or None) if info.frames <= size * MAX_FRAMES_PER_BYTE else None


class _MeasureJob:
    """A function of whole recordings in the form of `decode_job`: its result is the note of a skipped clip."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def __call__(self, job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
        source: str | bytes = job.clips[0].path
        if job.contents_file is not None:
            source = Path(job.contents_file).read_bytes()
        with machine.end_process_after(options.timeout):
            result = self._measure(source)
            fault = None if result else read_error(source)
        skipped = Skipped(fault or "cannot be decoded", retry=fault is not None)
        yield DecodedBatch(job.shard, job.first, [DecodedClip(job.clips[0], skipped, result or "")])


class RecordingWorker:
    """A function of whole recordings in a worker process, which starts with the first recording.

    Args:
        measure: The function; it returns None for a recording that cannot be decoded.
        decode_workers: 0 to call it in the calling thread instead.
        timeout: Seconds that a recording may take; one that takes longer, twice, has no result.
    """

    def __init__(self, measure: Measure, decode_workers: int, timeout: float) -> None:
        self._options, self._count = DecodeOptions(HASH_RATE, 0.0, 1, timeout), min(1, decode_workers)
        self._measure = measure
        self._pool: DecodeWorkerPool | None = None

    def __call__(self, source: str | bytes) -> str | None:
        """The result for a file, or for its bytes; None where it cannot be decoded.

        Raises OSError where the system cannot read it, which is no property of the file.
        """
        self._pool = self._pool or DecodeWorkerPool(self._count, self._options, _MeasureJob(self._measure))
        with tempfile.NamedTemporaryFile(prefix="preprocess-") as file:
            path = source if isinstance(source, str) else file.name  # a slow recording is remembered by this name
            if isinstance(source, bytes):
                file.write(source)
                file.flush()
            jobs = iter([Job("", 0, [Clip("", path, "")], None if isinstance(source, str) else file.name)])
            inbox, sender = Pipe()
            with inbox, sender:
                (batch,) = self._pool.decode(inbox, lambda: sender.send(next(jobs, None)))
        (result,) = batch.clips
        assert isinstance(result.audio, Skipped)  # see _MeasureJob
        if result.audio.retry and not result.audio.reason.startswith("too slow"):
            raise OSError(result.audio.reason)
        return result.note or None

    def close(self) -> None:
        """End the process."""
        if self._pool:
            self._pool.close()
