"""Decode the clips of a job. A clip that cannot be decoded is skipped, with a reason.

There are two kinds of reasons. A reason of the input (no samples, damaged, crashes its decoder) holds until the input
changes. A reason of the machine (a file that is missing or unreadable for now, a killed process) is marked `retry`: the
next run tries the clip again.

Letters: S samples.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from pipeline.audio import amplitude, audio_io
from pipeline.common import machine
from pipeline.common.errors import one_line
from pipeline.corpora import Clip, fingerprint
from pipeline.preprocessing.preparation import PrepareSettings, prepare_audio


@dataclass(frozen=True)
class Skipped:
    """Why a clip has no audio. retry: the machine is the cause, not the input, so the next run tries again."""

    reason: str
    retry: bool = False


CHANGED = Skipped("changed: the file is not what it was when it was listed; run again", retry=True)
MISSING = Skipped("missing: the file was there when it was listed; run again", retry=True)


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A clip with its audio, float32 [S] or [S, 2], or why there is none.

    note: How the audio differs from its file. gain: In dB, of `prepare.loudness`.
    """

    clip: Clip
    audio: np.ndarray | Skipped
    note: str = ""
    gain: float = 0.0


@dataclass(frozen=True)
class Job:
    """Clips to decode: those of a shard from number `first` on.

    contents_file: A file with the bytes of the clips that are in archives. spans: (offset, size) in that file for each
    clip, or None for a clip with a file of its own. is_retry: a single clip, whose worker ended before it was decoded.
    """

    shard: str
    first: int
    clips: list[Clip]
    contents_file: str | None = None
    spans: tuple[tuple[int, int] | None, ...] = ()
    embed_only: bool = False
    is_retry: bool = False

    def single_clip(self, i: int) -> Job:
        """A job with only clip number i, to be tried again."""
        return replace(
            self,
            first=self.first + i,
            clips=self.clips[i : i + 1],
            spans=self.spans[i : i + 1],
            is_retry=True,
        )

    def skip(self, reason: Skipped) -> DecodedBatch:
        """The result of a job whose clips are skipped."""
        return DecodedBatch(self.shard, self.first, [DecodedClip(clip, reason) for clip in self.clips], self.embed_only)


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded clips of a shard from number `first` on."""

    shard: str
    first: int
    clips: list[DecodedClip]
    embed_only: bool = False


@dataclass(frozen=True)
class DecodeOptions:
    """How clips are decoded.

    Args:
        rate: Sample rate in Hz.
        max_seconds: Longer clips are skipped.
        batch: Clips a batch.
        timeout: Seconds that decoding one clip may take; after that the process is ended. 0 for no limit.
        bad_amplitude: A policy of `pipeline.audio.amplitude`.
        keep_truncated: Whether to use what is there of a file with less audio than its header declares.
        prepare: What is done to the audio of a clip; None for nothing.
        channels: 1 for mono [S], 2 for stereo [S, 2].
    """

    rate: int
    max_seconds: float
    batch: int
    timeout: float
    bad_amplitude: str = "keep"
    keep_truncated: bool = False
    prepare: PrepareSettings | None = None
    channels: int = 1

    def fault_callback(self, faults: list[str]) -> audio_io.OnFault | None:
        """What `audio_io.read` calls for channels that cancel each other; None where such clips are kept."""
        return None if self.bad_amplitude == "keep" else faults.append


def decode_job(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    """The clips of a job, decoded, in batches of `options.batch`."""
    batch = DecodedBatch(job.shard, job.first, [], job.embed_only)
    for decoded in decode_clips(job, options):
        batch.clips.append(decoded)
        if len(batch.clips) == options.batch:
            yield batch
            batch = DecodedBatch(job.shard, batch.first + len(batch.clips), [], job.embed_only)
    if batch.clips:
        yield batch


def decode_clips(job: Job, options: DecodeOptions) -> Iterator[DecodedClip]:
    """Each clip of a job, decoded."""
    spans = job.spans or (None,) * len(job.clips)
    pairs = zip(job.clips, spans, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].path):
        recording = list(group)
        clips, span = [clip for clip, _ in recording], recording[0][1]
        faults: list[str] = []  # of the clip that is decoded next
        truncated: list[str] = []  # of the recording
        decoded = _decode_recording(job.contents_file, span, clips, options, faults, truncated)
        for clip in clips:
            with machine.end_process_after(options.timeout):
                audio = next(decoded)
                now = fingerprint(clip)
                audio = audio if now == clip.fingerprint else CHANGED if now else MISSING
            if isinstance(audio, Skipped):
                yield DecodedClip(clip, audio)
            else:
                yield _prepare_clip(clip, audio, options, faults, truncated)
            faults.clear()


def _prepare_clip(
    clip: Clip, wav: np.ndarray, options: DecodeOptions, faults: list[str], truncated: list[str]
) -> DecodedClip:
    """A clip as it is encoded. faults, truncated: see `_decode_recording`."""
    scaled, note = amplitude.apply_policy(wav, options.bad_amplitude, faults)
    if scaled is None:
        return DecodedClip(clip, Skipped(note))
    notes = [*truncated, note]
    if options.prepare is None:
        return DecodedClip(clip, scaled, "; ".join(filter(None, notes)))
    prepared = prepare_audio(scaled, options.rate, options.prepare)
    if prepared.wav is None:
        return DecodedClip(clip, Skipped(prepared.note))
    if prepared.start:
        clip = replace(clip, start=round(clip.start + prepared.start, 6))
    return DecodedClip(clip, prepared.wav, "; ".join(filter(None, [*notes, prepared.note])), prepared.gain)


def read_error(source: str | bytes) -> str | None:
    """The system's error when a file is read completely, which decoders report as damage; None if there is none."""
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


def _decode_recording(
    contents_file: str | None,
    span: tuple[int, int] | None,
    clips: list[Clip],
    options: DecodeOptions,
    faults: list[str],
    truncated: list[str],
) -> Iterator[np.ndarray | Skipped]:
    """The clips of one recording. contents_file, span: where its bytes are, if it is in an archive.

    faults receives what is wrong with a clip's channels, before the clip is yielded; truncated receives a note if the
    recording is truncated.
    """
    source: str | bytes = clips[0].path
    if span is not None and contents_file is not None:
        try:
            source = _read_span(contents_file, *span)
        except OSError as error:
            yield from [_skip_reason(error, source)] * len(clips)
            return
    if options.keep_truncated:
        with suppress(audio_io.AudioError, OSError):  # the same error is raised, and handled, below
            truncated += filter(None, [audio_io.truncation(source)])
    if len(clips) > 1:
        yield from _decode_segments(source, clips, options, faults)
    else:
        yield _decode_clip(source, clips[0], options, faults)


def _read_span(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as content:  # noqa: PTH123
        content.seek(offset)
        return content.read(size)


def _decode_clip(source: str | bytes, clip: Clip, options: DecodeOptions, faults: list[str]) -> np.ndarray | Skipped:
    start, duration = clip.start, clip.duration
    if duration is not None and duration > options.max_seconds:
        return _too_long(options)
    # one sample more than the longest clip shows whether a file is longer, without decoding all of it
    seconds = options.max_seconds + 1 / options.rate if duration is None else duration
    try:
        wav = audio_io.read(
            source,
            start=start,
            duration=seconds,
            rate=options.rate,
            channels=options.channels,
            keep_truncated=options.keep_truncated,
            on_fault=options.fault_callback(faults),
        )
    except Exception as error:
        return _skip_reason(error, source)
    return wav if len(wav) <= round(options.max_seconds * options.rate) else _too_long(options)


def _decode_segments(
    source: str | bytes, clips: list[Clip], options: DecodeOptions, faults: list[str]
) -> Iterator[np.ndarray | Skipped]:
    """Clips of one recording, which is decoded once.

    A clip with samples that are not finite is skipped alone; after any other error all later clips are skipped.
    """
    cuts = [(clip.start, clip.duration) for clip in clips]
    if any(duration is None or duration > options.max_seconds for _, duration in cuts) or cuts != sorted(cuts):
        for clip in clips:
            yield _decode_clip(source, clip, options, faults)
        return
    done = 0
    try:
        for wav in audio_io.read_segments(
            source,
            cuts,  # type: ignore[arg-type]  # no duration is None here
            finite=False,
            rate=options.rate,
            channels=options.channels,
            keep_truncated=options.keep_truncated,
            on_fault=options.fault_callback(faults),
        ):
            yield wav if np.isfinite(wav).all() else Skipped(audio_io.NOT_FINITE)
            done += 1
    except Exception as error:
        yield from [_skip_reason(error, source)] * (len(clips) - done)


def _skip_reason(error: Exception, source: str | bytes) -> Skipped:
    """Why a clip is skipped after an exception: any exception of a decoder concerns its file, unless reading failed."""
    if isinstance(error, OSError | MemoryError):
        return Skipped(f"unreadable: {type(error).__name__}: {one_line(error)}", retry=True)
    if fault := read_error(source):
        return Skipped(f"unreadable: {fault}", retry=True)
    if isinstance(error, audio_io.AudioError):
        return Skipped(error.reason)
    return Skipped(f"unreadable: {type(error).__name__}: {one_line(error)}")


def _too_long(options: DecodeOptions) -> Skipped:
    limit = f"max_seconds={options.max_seconds:g}"
    return Skipped(f"too long: it lasts more than {limit}; cut it into segments, or allow more")
