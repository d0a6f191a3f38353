"""Pieces played: clips of one shape in batches, decoded and written as soon as they are whole.

Letters: K codebooks, T frames, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipeline.audio import audio_io
from pipeline.common.errors import InputError
from pipeline.generation import sidecar
from pipeline.generation.generator import Generation, GenerationSpec
from pipeline.generation.interpolation import crossfade
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.request import AudioRequest, ClipRequest, SlidingWindow
from pipeline.generation.sampling import SamplingParams

Job = tuple[int, int]  # a piece, and a clip of it, by number
PROGRESS_FRAMES = 75  # frames
OnCodes = Callable[[Tensor], None]  # told codes [B, K, t] of a batch as soon as t frames more are whole


@dataclass(frozen=True)
class GeneratedFile:
    """A sound file that was written. sounds: its clips [S] before they were joined; none where it was streamed.

    whole: not where it was interrupted. clipped: the share of its samples that are at full scale.
    """

    path: Path
    seconds: float
    codes_sha256: str
    is_complete: bool
    clipped_fraction: float
    clips: Sequence[np.ndarray] = ()


def start_generation(
    instrument: LoadedRun,
    clips: Sequence[ClipRequest],
    samples: int,
    sampling: SamplingParams,
    window: SlidingWindow | None,
) -> Generation:
    """Clips of one shape, ready to be played together."""
    first = clips[0]
    prompts = [
        (frame, torch.stack([clip.prompts[i][1] for clip in clips])) for i, (frame, _) in enumerate(first.prompts)
    ]
    given = None if first.prefix_codes is None else torch.stack([clip.prefix_codes for clip in clips])  # type: ignore[misc]
    plan = GenerationSpec(
        frames=instrument.codec.num_frames(samples),
        seeds=[clip.seed for clip in clips],
        samplings=[sampling] * len(clips),
        prompts=prompts,
        prefix_codes=given,
        window=window.frames if window else None,
        window_stride=window.stride if window else None,
    )
    return Generation(instrument.engine, plan)


def generate_files(
    run: LoadedRun,
    requests: Sequence[AudioRequest],
    sampling: SamplingParams,
    window: SlidingWindow | None,
    batch: int,
    on_status: Callable[[str], None],
    batch_slot: Mapping[str, int] | None = None,
    on_codes: OnCodes | None = None,
    progress_frames: int = PROGRESS_FRAMES,
    stop_frames: Sequence[int] | None = None,
) -> Iterator[GeneratedFile]:
    """Make pieces, at most `batch` clips at once, and write each as soon as it is whole.

    say(line), watch(codes): told every so many frames how far it is, and what was made. repeat: rows and row of the
    batch in which the one clip was made, to be made again in such a batch. until: of a single piece that was
    interrupted, the frames of each clip that were made. Interrupted, what is made of the pieces under way is written
    and told too.
    """
    jobs = [(p, c) for p, piece in enumerate(requests) for c in range(len(piece.clips))][
        : len(stop_frames) if stop_frames else None
    ]
    codes: dict[Job, Tensor] = {}
    rate = run.codec.frame_rate
    first = 1  # the number of a batch's first clip
    for part in _batches(requests, jobs, batch):
        clips, last = [requests[p].clips[c] for p, c in part], first + len(part) - 1
        numbers = f"clip {first}" if first == last else f"clips {first}-{last}"
        rows, row = (batch_slot["rows"], batch_slot["row"]) if batch_slot and len(clips) == 1 else (len(clips), 0)
        take = start_generation(run, clips * (rows // len(clips)), requests[part[0][0]].samples, sampling, window)
        touched = list(dict.fromkeys(p for p, _ in part))
        enough = max(stop_frames[c] for _, c in part) if stop_frames else take.spec.frames
        place = {p: {"rows": rows, "row": row + [q for q, _ in part].index(p)} for p in touched}
        try:
            for found in take.chunks(progress_frames):
                if on_codes is not None:
                    on_codes(found)
                made, frames = take.complete_frames / rate, take.spec.frames / rate
                on_status(f"{numbers} of {len(jobs)}: {made:.1f} s of {frames:.1f} s")
                if stop_frames and take.complete_frames >= enough:
                    break
        except BaseException as error:  # what is made is kept
            codes |= _codes(take, part, row)
            for p in touched:
                kept = _write(run, requests[p], _of(codes, p), place[p], whole=False)
                if kept.seconds and isinstance(error, KeyboardInterrupt):
                    yield kept
            raise
        codes |= _codes(take, part, row, stop_frames)
        first = last + 1
        for p in touched:
            if len(_of(codes, p)) == len(stop_frames or requests[p].clips):
                yield _write(run, requests[p], _of(codes, p), place[p], whole=stop_frames is None)


def _codes(take: Generation, part: Sequence[Job], row: int, until: Sequence[int] | None = None) -> dict[Job, Tensor]:
    """What a take has made of each clip of a batch: [K, T]."""
    ends = take.lengths.clamp(max=take.complete_frames).tolist()[row:]
    ends = [min(end, until[c]) for end, (_, c) in zip(ends, part, strict=False)] if until else ends
    return {job: take.codes[row + i, :, : ends[i]].cpu() for i, job in enumerate(part)}


def _of(codes: Mapping[Job, Tensor], piece: int) -> list[Tensor]:
    return [clip for (p, _), clip in sorted(codes.items(), key=lambda item: item[0]) if p == piece]


def _batches(pieces: Sequence[AudioRequest], jobs: Sequence[Job], batch: int) -> Iterator[list[Job]]:
    """Jobs in order, those of one shape together, at most `batch` of them."""
    part: list[Job] = []
    for p, c in jobs:
        if part and (len(part) == batch or _shape(pieces, part[-1]) != _shape(pieces, (p, c))):
            yield part
            part = []
        part.append((p, c))
    if part:
        yield part


def _shape(pieces: Sequence[AudioRequest], job: Job) -> tuple[object, ...]:
    piece, clip = pieces[job[0]], pieces[job[0]].clips[job[1]]
    given = 0 if clip.prefix_codes is None else clip.prefix_codes.shape[1]
    return piece.samples, given, *(frame for frame, _ in clip.prompts)


def _write(
    instrument: LoadedRun, piece: AudioRequest, codes: Sequence[Tensor], place: Mapping[str, int], whole: bool
) -> GeneratedFile:
    """Decode clips [K, T], each alone so that the others change nothing, and write the piece and its sidecar."""
    rate = instrument.codec.sample_rate
    made = [instrument.codec.decode(clip[None].long())[0, 0].cpu().numpy() for clip in codes if clip.shape[1]]
    sounds = [sound[: piece.samples] for sound in made]
    wav = crossfade(sounds, piece.crossfade) if sounds else np.zeros(0, np.float32)
    if whole or len(wav):
        audio_io.write(piece.out, wav, rate)
        sidecar.write(piece, instrument, codes, place, len(wav) / rate, whole)
    clipped = _full(wav) / max(1, len(wav))
    return GeneratedFile(piece.out, len(wav) / rate, sidecar.hash_codes(codes), whole, clipped, sounds)


def _full(wav: np.ndarray) -> int:
    """How many samples of [S] are at full scale, and so cut off."""
    return int((np.abs(wav) >= 1).sum())


def stream_audio(
    instrument: LoadedRun,
    clip: ClipRequest,
    samples: int,
    sampling: SamplingParams,
    window: SlidingWindow | None,
    chunk: float,
) -> Iterator[np.ndarray]:
    """A clip's sound [S] while it is made, some `chunk` seconds at a time; joined, it is the sound made whole."""
    yield from _sound(instrument, start_generation(instrument, [clip], samples, sampling, window), samples, chunk)


def _sound(instrument: LoadedRun, take: Generation, samples: int, chunk: float) -> Iterator[np.ndarray]:
    size = max(1, round(chunk * instrument.codec.frame_rate))
    for wav in instrument.codec.decode_stream(take.chunks(size)):
        part = wav[0, 0, :samples].cpu().numpy()
        samples -= len(part)
        if len(part):
            yield part
        if not samples:
            return


def stream_files(
    run: LoadedRun,
    requests: Sequence[AudioRequest],
    sampling: SamplingParams,
    window: SlidingWindow | None,
    chunk: float,
    stop_seconds: float | None = None,
) -> Iterator[GeneratedFile]:
    """Make pieces of one clip one after the other, each written to its file while it is made.

    until: of a piece that was interrupted, the seconds that were made. Interrupted, what is made is told too. Raises
    InputError for a piece of several clips.
    """
    rate = run.codec.sample_rate
    for piece in requests:
        if len(piece.clips) != 1:
            raise InputError("stream=true: an interpolation is joined from whole clips; stream mode=morph instead")
        take = start_generation(run, piece.clips, piece.samples, sampling, window)
        piece.out.parent.mkdir(parents=True, exist_ok=True)
        samples, written, full = piece.samples if stop_seconds is None else round(stop_seconds * rate), 0, 0

        try:
            with soundfile.SoundFile(piece.out, "w", rate, 1) as file:
                for wav in _sound(run, take, samples, chunk):
                    file.write(wav.clip(-1, 1))
                    file.flush()
                    written, full = written + len(wav), full + _full(wav)
        except BaseException as error:
            if written:
                written = soundfile.info(piece.out).frames  # the interruption may have come right after a write
                kept = _streamed(run, piece, take, written, full, whole=False)
                if isinstance(error, KeyboardInterrupt):
                    yield kept
            raise
        yield _streamed(run, piece, take, written, full, whole=stop_seconds is None)


def _streamed(
    instrument: LoadedRun, piece: AudioRequest, take: Generation, written: int, full: int, whole: bool
) -> GeneratedFile:
    """Write the sidecar of a piece of which so many samples are written, so many of them at full scale."""
    heard, seconds = instrument.codec.num_frames(written), written / instrument.codec.sample_rate
    codes = [take.codes[0, :, : min(int(take.lengths[0]), take.complete_frames, heard)].cpu()]
    sidecar.write(piece, instrument, codes, {"rows": 1, "row": 0}, seconds, whole)
    return GeneratedFile(piece.out, seconds, sidecar.hash_codes(codes), whole, full / max(1, written))
