"""Clips of a job, decoded one after another, each with the reason where it cannot be.

A clip is skipped for one of two kinds of reason. The input's own (no sound, damaged, a crash of its decoder) holds
until the input changes. The machine's (a file that is away or cannot be read for now, a process that was killed) is
marked `retry`: the next run tries again.

Letters: S samples.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from pipeline.audio import amplitude, audio_io
from pipeline.corpora import fingerprint
from pipeline.preprocessing.shard_planner import PlannedClip


@dataclass(frozen=True)
class Skipped:
    """Why a clip has no sound. retry: the machine's fault and not the input's, so that the next run tries again."""

    reason: str
    retry: bool = False


AudioOrError = np.ndarray | Skipped  # float32 [S], or why there is none
CHANGED = Skipped("changed: the file is not what it was when it was listed; run again", retry=True)
MISSING = Skipped("missing: the file was there when it was listed; run again", retry=True)


@dataclass(frozen=True)
class Job:
    """Clips to decode: items of a shard from number `first` on. Bytes that lie in archives wait in the file `held`."""

    shard: str
    first: int
    clips: list[PlannedClip]
    contents_file: str | None = None
    spans: tuple[tuple[int, int] | None, ...] = ()  # offset and bytes in `held`, a pair an item
    embed_only: bool = False
    is_retry: bool = False  # one clip, which ended a reader before

    def single_clip(self, i: int) -> Job:
        """Only clip number i, for another try."""
        one = {"clips": self.clips[i : i + 1], "spans": self.spans[i : i + 1]}
        return replace(self, first=self.first + i, is_retry=True, **one)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded clips: items of a shard from number `first` on."""

    shard: str
    first: int
    clips: list[AudioOrError]
    embed_only: bool = False
    notes: dict[int, str] = field(default_factory=dict)  # by place in `heard`: how a clip is not as its file has it


@dataclass(frozen=True)
class DecodeOptions:
    """How clips are read.

    rate: Hz; longest: seconds, clips that last longer are set aside; batch: clips a part; patience: seconds that the
    reading of one clip may take, after which the process ends (0: as long as it likes); bad_amplitude: a policy of
    `pipeline.audio.amplitude`; keep_truncated: read what there is of a file with less sound than its header declares.
    """

    rate: int
    max_seconds: float
    batch: int
    timeout: float
    bad_amplitude: str = "keep"
    keep_truncated: bool = False

    def fault_callback(self, faults: list[str]) -> audio_io.OnFault | None:
        """What `audio.read` calls for channels that cancel each other; None where they are kept."""
        return None if self.bad_amplitude == "keep" else faults.append


def decode_clips(job: Job, how: DecodeOptions) -> Iterator[tuple[AudioOrError, str]]:
    """Each clip of a job, decoded, or why it could not be; and how it is not as its file has it ("": it is)."""
    spans = job.spans or (None,) * len(job.clips)
    pairs = zip(job.clips, spans, strict=True)
    for _, run in groupby(pairs, key=lambda pair: pair[0].clip.path):
        items, places = zip(*run, strict=True)
        faults: list[str] = []  # of the clip that comes next
        truncated: list[str] = []  # of the recording
        heard = _decode_recording(job.contents_file, places[0], items, how, faults, truncated)
        for item in items:
            with kill_after(how.timeout):
                found = next(heard)
                now = fingerprint(item.clip)
                found = found if now == item.fingerprint else CHANGED if now else MISSING
            note = ""
            if isinstance(found, np.ndarray):
                wav, note = amplitude.apply_policy(found, how.bad_amplitude, faults)
                found = Skipped(note) if wav is None else wav
                note = "; ".join(filter(None, [*truncated, note]))
            faults.clear()
            yield found, note


def _decode_recording(
    held: str | None,
    span: tuple[int, int] | None,
    items: tuple[PlannedClip, ...],
    how: DecodeOptions,
    faults: list[str],
    truncated: list[str],
) -> Iterator[AudioOrError]:
    """The clips of one recording.

    faults: gets what is wrong with a clip's channels before the clip is yielded; truncated: gets that the recording is.
    """
    source: str | bytes = items[0].clip.path
    if span is not None and held is not None:
        try:
            source = _read_span(held, *span)
        except OSError as error:
            yield from [_skip_reason(error, source)] * len(items)
            return
    if how.keep_truncated:
        with suppress(audio_io.AudioError, OSError):  # read again below, and then handled
            truncated += filter(None, [audio_io.truncation(source)])
    yield from (
        _decode_segments(source, items, how, faults) if len(items) > 1 else _decode_clip(source, items[0], how, faults)
    )


@contextmanager
def kill_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer: the system does, for a decoder that hangs lets no thread run."""
    if not seconds:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read_span(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as content:  # noqa: PTH123
        content.seek(offset)
        return content.read(size)


def _decode_clip(
    source: str | bytes, item: PlannedClip, how: DecodeOptions, faults: list[str]
) -> Iterator[AudioOrError]:
    clip = item.clip
    if clip.duration is not None and clip.duration > how.max_seconds:
        yield _too_long(how)
        return
    # one more sample than the longest clip tells whether a file goes on, without decoding all of it
    seconds = how.max_seconds + 1 / how.rate if clip.duration is None else clip.duration
    try:
        wav = audio_io.read(
            source,
            start=clip.start,
            duration=seconds,
            rate=how.rate,
            keep_truncated=how.keep_truncated,
            on_fault=how.fault_callback(faults),
        )
    except Exception as error:
        yield _skip_reason(error, source)
        return
    yield wav if len(wav) <= round(how.max_seconds * how.rate) else _too_long(how)


def _decode_segments(
    source: str | bytes, items: tuple[PlannedClip, ...], how: DecodeOptions, faults: list[str]
) -> Iterator[AudioOrError]:
    """Clips of one recording, decoded once. One that is not finite is none; other trouble is the later ones' too."""
    cuts = [(item.clip.start, item.clip.duration) for item in items]
    if any(duration is None or duration > how.max_seconds for _, duration in cuts) or cuts != sorted(cuts):
        for item in items:
            yield from _decode_clip(source, item, how, faults)
        return
    done = 0
    try:
        options = {"rate": how.rate, "keep_truncated": how.keep_truncated, "on_fault": how.fault_callback(faults)}
        for wav in audio_io.read_segments(source, cuts, finite=False, **options):  # type: ignore[arg-type]
            yield wav if np.isfinite(wav).all() else Skipped(audio_io.NOT_FINITE)
            done += 1
    except Exception as error:
        yield from [_skip_reason(error, source)] * (len(items) - done)


def _skip_reason(error: Exception, source: str | bytes) -> Skipped:
    """Whatever a decoder raises is about that file, unless the system could not read it; others are not stopped."""
    if isinstance(error, OSError | MemoryError):
        return Skipped(f"unreadable: {type(error).__name__}: {' '.join(str(error).split())}", retry=True)
    if fault := read_error(source):
        return Skipped(f"unreadable: {fault}", retry=True)
    if isinstance(error, audio_io.AudioError):
        return Skipped(error.reason)
    return Skipped(f"unreadable: {type(error).__name__}: {' '.join(str(error).split())}")


def read_error(source: str | bytes) -> str | None:
    """Why the system cannot read a file from its beginning to its end, which a decoder takes for damage of the file."""
    if isinstance(source, bytes):
        return None
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # noqa: PTH116
            return None
        with open(source, "rb", buffering=0) as file:  # noqa: PTH123
            while file.read(1 << 20):
                pass
    except OSError as error:
        return error.strerror or str(error)
    return None


def _too_long(how: DecodeOptions) -> Skipped:
    limit = f"max_seconds={how.max_seconds:g}"
    return Skipped(f"too long: it lasts more than {limit}; cut it into segments, or allow more")


def decode_job(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """A job, decoded, in parts of `how.batch` clips."""
    part = DecodedBatch(job.shard, job.first, [], job.embed_only)
    for found, note in decode_clips(job, how):
        if note and isinstance(found, np.ndarray):
            part.notes[len(part.clips)] = note
        part.clips.append(found)
        if len(part.clips) == how.batch:
            yield part
            part = DecodedBatch(job.shard, part.first + len(part.clips), [], job.embed_only)
    if part.clips:
        yield part
