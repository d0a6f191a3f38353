"""Hashes of whole recordings' sound, for the search for copies, by a reader process: a hang costs that one only."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import Pipe

from pipeline.audio import audio_io
from pipeline.corpora import Clip
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Job, Skipped, kill_after, read_error
from pipeline.preprocessing.decode_workers import DecodeWorkerPool
from pipeline.preprocessing.shard_planner import PlannedClip

MAX_FRAMES_PER_BYTE = 8192  # frames in a byte: FLAC and Opus hold silence in less, but no header that says more is true
_DIGEST = re.compile("[0-9a-f]{32}")


def hash_audio(source: str | bytes) -> str | None:
    """A hash of a whole recording's decoded sound, in constant memory; None where it cannot be decoded."""
    total = hashlib.blake2b(digest_size=16)
    cuts = ((10.0 * i, 10.0) for i in itertools.count())
    try:
        for wav in audio_io.read_segments(source, cuts, keep_truncated=True):
            total.update(wav.data)
    except audio_io.AudioError as error:
        if not error.reason.startswith("empty"):  # the first cut past the end
            return None
    return total.hexdigest()


class MeasuredDurations:
    """How long files are, counted rather than estimated. keep_truncated: whether truncated files are used."""

    def __init__(self, keep_truncated: bool) -> None:
        self._keep = keep_truncated
        self.kind = "seconds-kept" if keep_truncated else "seconds"

    def __call__(self, path: str) -> float | None:
        """Seconds of sound in a file; None where reading it will fail. Raises OSError where it cannot be opened."""
        size = os.stat(path).st_size  # noqa: PTH116
        try:
            info = audio_io.info(path, keep_truncated=self._keep)
        except audio_io.AudioError as error:
            if error.reason.startswith("missing"):
                raise OSError(error.reason) from error
            return None
        return (round(info.seconds, 6) or None) if info.frames <= size * MAX_FRAMES_PER_BYTE else None


def hash_job(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """`digest_of_sound` as what a reader does: a job of one recording, which waits in `held` or has a path."""
    source: str | bytes = job.clips[0].clip.path
    if job.contents_file is not None:
        with open(job.contents_file, "rb") as file:  # noqa: PTH123
            source = file.read()
    with kill_after(how.timeout):
        found = hash_audio(source)
        fault = None if found else read_error(source)
    yield DecodedBatch(job.shard, job.first, [Skipped(found or fault or "cannot be decoded", retry=fault is not None)])


class AudioHasher:
    """`digest_of_sound`, by a process that begins with the first recording. readers: 0 for the calling thread instead.

    patience: seconds that a recording may take; one that takes longer, twice, has no digest.
    """

    def __init__(
        self, readers: int, patience: float, read: Callable[[Job, DecodeOptions], Iterator[DecodedBatch]] = hash_job
    ) -> None:
        self._how, self._count, self._read = DecodeOptions(24_000, 0.0, 1, patience), min(1, readers), read
        self._readers: DecodeWorkerPool | None = None

    def __call__(self, source: str | bytes) -> str | None:
        """The hash of a file, or of its bytes; None where it cannot be decoded.

        Raises OSError where the system cannot read it: that is no property of the file.
        """
        self._readers = self._readers or DecodeWorkerPool(self._count, self._how, self._read)
        with tempfile.NamedTemporaryFile(prefix="preprocess-") as file:
            path = source if isinstance(source, str) else file.name  # also what is told apart if it is slow
            if isinstance(source, bytes):
                file.write(source)
                file.flush()
            held = None if isinstance(source, str) else file.name
            job = Job("", 0, [PlannedClip(Clip("", path, ""), path, "")], held)
            inbox, ours = Pipe()
            with inbox, ours:
                jobs = iter([job])
                (part,) = self._readers.decode(inbox, lambda: ours.send(next(jobs, None)))
        found = part.clips[0]
        assert isinstance(found, Skipped)  # for want of another way to say a text
        if found.retry and not found.reason.startswith("too slow"):
            raise OSError(found.reason)
        return found.reason if _DIGEST.fullmatch(found.reason) else None

    def close(self) -> None:
        """End the process."""
        if self._readers:
            self._readers.close()
