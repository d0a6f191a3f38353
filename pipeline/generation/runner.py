"""Generation of sound files: clips in batches, decoded and written as soon as they are complete.

Letters: B clips, K codebooks, T frames, S samples.
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
from pipeline.generation.settings import SamplingSettings

Job = tuple[int, int]  # the number of a request, and of a clip in it
PROGRESS_FRAMES = 75  # frames between two status lines
OnCodes = Callable[[Tensor], None]  # gets codes [B, K, t] of a batch as soon as t more frames are complete


@dataclass(frozen=True)
class GeneratedFile:
    """A sound file that was written.

    Attributes:
        path: The file.
        seconds: Its length.
        codes_sha256: The hash of its codes.
        is_complete: False if the generation was interrupted.
        clipped_fraction: The fraction of its samples that are at full scale.
        clips: Its clips [S] before they were joined; empty if it was streamed.
    """

    path: Path
    seconds: float
    codes_sha256: str
    is_complete: bool
    clipped_fraction: float
    clips: Sequence[np.ndarray] = ()


def start_generation(
    run: LoadedRun,
    clips: Sequence[ClipRequest],
    samples: int,
    sampling: SamplingSettings,
    window: SlidingWindow | None,
) -> Generation:
    """A generation of clips that have the same length, prompt times and prefix length."""
    first = clips[0]
    prompts = [
        (frame, torch.stack([clip.prompts[i][1] for clip in clips])) for i, (frame, _) in enumerate(first.prompts)
    ]
    has_prefix = first.prefix_codes is not None
    spec = GenerationSpec(
        frames=run.codec.num_frames(samples),
        seeds=[clip.seed for clip in clips],
        sampling=sampling,
        prompts=prompts,
        prefix_codes=torch.stack([clip.prefix_codes for clip in clips]) if has_prefix else None,  # type: ignore[misc]
        window=window.frames if window else None,
        window_stride=window.stride if window else None,
    )
    return Generation(run.engine, spec)


def generate_files(
    run: LoadedRun,
    requests: Sequence[AudioRequest],
    sampling: SamplingSettings,
    window: SlidingWindow | None,
    batch: int,
    on_status: Callable[[str], None],
    batch_slot: Mapping[str, int] | None = None,
    on_codes: OnCodes = lambda codes: None,
    progress_frames: int = PROGRESS_FRAMES,
    stop_frames: Sequence[int] | None = None,
) -> Iterator[GeneratedFile]:
    """Generate sound files, and write each as soon as it is complete.

    Args:
        run: The run that generates.
        requests: The sounds.
        sampling: How tokens are sampled.
        window: The sliding window for sounds longer than the training clips.
        batch: The number of clips to generate at once, at most.
        on_status: Gets a line about the progress every `progress_frames` frames.
        batch_slot: {"rows": R, "row": r}: generate a single clip as row r of a batch of R, as it was the first time.
        on_codes: Gets the new codes every `progress_frames` frames.
        progress_frames: Frames between two calls of these.
        stop_frames: Where to stop each clip of a single request: regenerates a sound that was interrupted.

    Yields:
        The files. After a KeyboardInterrupt also those that are incomplete; then it is raised again.
    """
    jobs = [(r, c) for r, request in enumerate(requests) for c in range(len(request.clips))]
    jobs = jobs[: len(stop_frames)] if stop_frames else jobs
    codes, first = dict[Job, Tensor](), 1  # first: the number of a batch's first clip
    for jobs_of_batch in _batches(requests, jobs, batch):
        clips = [requests[r].clips[c] for r, c in jobs_of_batch]
        label = f"clip {first}" if len(clips) == 1 else f"clips {first}-{first + len(clips) - 1}"
        rows, row = (batch_slot["rows"], batch_slot["row"]) if batch_slot and len(clips) == 1 else (len(clips), 0)
        of_batch = list(dict.fromkeys(r for r, _ in jobs_of_batch))  # the requests with a clip in this batch
        repeated, samples = clips * (rows // len(clips)), requests[of_batch[0]].samples
        generation = start_generation(run, repeated, samples, sampling, window)
        stop = max(stop_frames[c] for _, c in jobs_of_batch) if stop_frames else None
        slots = {r: {"rows": rows, "row": row + [q for q, _ in jobs_of_batch].index(r)} for r in of_batch}
        try:
            for new_codes in generation.chunks(progress_frames):
                on_codes(new_codes)
                on_status(f"{label} of {len(jobs)}: {_progress(run, generation)}")
                if stop is not None and generation.complete_frames >= stop:
                    break
        except BaseException as error:  # write what is generated so far
            codes |= _codes_by_job(generation, jobs_of_batch, row)
            for r in of_batch:
                file = _write_file(run, requests[r], _codes_of_request(codes, r), slots[r], is_complete=False)
                if file.seconds and isinstance(error, KeyboardInterrupt):
                    yield file
            raise
        codes |= _codes_by_job(generation, jobs_of_batch, row, stop_frames)
        first += len(clips)
        for r in of_batch:
            clip_codes = _codes_of_request(codes, r)
            if len(clip_codes) == len(stop_frames or requests[r].clips):
                yield _write_file(run, requests[r], clip_codes, slots[r], is_complete=stop_frames is None)


def _progress(run: LoadedRun, generation: Generation) -> str:
    """The length that is generated so far, and that of the whole."""
    rate = run.codec.frame_rate
    return f"{generation.complete_frames / rate:.1f} s of {generation.spec.frames / rate:.1f} s"


def _codes_by_job(
    generation: Generation, jobs: Sequence[Job], row: int, stop_frames: Sequence[int] | None = None
) -> dict[Job, Tensor]:
    """The codes [K, T] of each clip of a batch, whose first clip is in this row."""
    ends = generation.lengths.clamp(max=generation.complete_frames).tolist()[row:]
    if stop_frames:
        ends = [min(end, stop_frames[c]) for end, (_, c) in zip(ends, jobs, strict=False)]
    return {job: generation.codes[row + i, :, : ends[i]].cpu() for i, job in enumerate(jobs)}


def _codes_of_request(codes: Mapping[Job, Tensor], request: int) -> list[Tensor]:
    """The codes [K, T] of a request's clips, in order."""
    return [clip for (r, _), clip in sorted(codes.items(), key=lambda item: item[0]) if r == request]


def _batches(requests: Sequence[AudioRequest], jobs: Sequence[Job], batch: int) -> Iterator[list[Job]]:
    """Consecutive jobs of the same shape, at most `batch` of them."""
    jobs_of_batch: list[Job] = []
    for job in jobs:
        if jobs_of_batch and (
            len(jobs_of_batch) == batch or _shape(requests, jobs_of_batch[-1]) != _shape(requests, job)
        ):
            yield jobs_of_batch
            jobs_of_batch = []
        jobs_of_batch.append(job)
    if jobs_of_batch:
        yield jobs_of_batch


def _shape(requests: Sequence[AudioRequest], job: Job) -> tuple[object, ...]:
    """What must be equal for clips to be generated in one batch: length, prefix length and prompt times."""
    request, clip = requests[job[0]], requests[job[0]].clips[job[1]]
    prefix_frames = 0 if clip.prefix_codes is None else clip.prefix_codes.shape[1]
    return request.samples, prefix_frames, *(frame for frame, _ in clip.prompts)


def _write_file(
    run: LoadedRun, request: AudioRequest, codes: Sequence[Tensor], slot: Mapping[str, int], is_complete: bool
) -> GeneratedFile:
    """Decode clips [K, T], join them, and write the sound and its sidecar.

    Each clip is decoded alone, so that it does not depend on the others.
    """
    rate = run.codec.sample_rate
    clips = [run.codec.decode_clip(clip)[: request.samples] for clip in codes if clip.shape[1]]
    wav = crossfade(clips, request.crossfade) if clips else np.zeros(0, np.float32)
    if is_complete or len(wav):
        audio_io.write(request.out, wav, rate)
        sidecar.write(request, run, codes, slot, len(wav) / rate, is_complete)
    clipped_fraction = _count_clipped(wav) / max(1, len(wav))
    return GeneratedFile(request.out, len(wav) / rate, sidecar.hash_codes(codes), is_complete, clipped_fraction, clips)


def _count_clipped(wav: np.ndarray) -> int:
    """The number of samples of a sound [S] at full scale, which are clipped in the file."""
    return int((np.abs(wav) >= 1).sum())


def decode_chunks(run: LoadedRun, generation: Generation, samples: int, chunk: float) -> Iterator[np.ndarray]:
    """The sound of a generation of one clip, while it is generated.

    Args:
        run: The run that generates.
        generation: The generation, not started.
        samples: The length of the sound.
        chunk: The length of a part, in seconds.

    Yields:
        Parts [S] of the sound. Joined they are equal, up to rounding, to the sound decoded at once.
    """
    size = max(1, round(chunk * run.codec.frame_rate))
    for wav in run.codec.decode_stream(generation.chunks(size)):
        part = wav[0, 0, :samples].cpu().numpy()
        samples -= len(part)
        if len(part):
            yield part
        if not samples:
            return


def stream_files(
    run: LoadedRun,
    requests: Sequence[AudioRequest],
    sampling: SamplingSettings,
    window: SlidingWindow | None,
    chunk: float,
    stop_seconds: float | None = None,
) -> Iterator[GeneratedFile]:
    """Generate sounds of one clip, one after the other, and write each to its file while it is generated.

    Args:
        run: The run that generates.
        requests: The sounds.
        sampling: How tokens are sampled.
        window: The sliding window for sounds longer than the training clips.
        chunk: The length of sound in each write, in seconds.
        stop_seconds: Where to stop: regenerates a sound that was interrupted.

    Yields:
        The files. After a KeyboardInterrupt also the incomplete one; then it is raised again.

    Raises:
        InputError: A request has several clips.
    """
    rate = run.codec.sample_rate
    for request in requests:
        if len(request.clips) != 1:
            raise InputError("stream=true: mode=interpolate cannot be streamed; use mode=morph")
        generation = start_generation(run, request.clips, request.samples, sampling, window)
        request.out.parent.mkdir(parents=True, exist_ok=True)
        samples = request.samples if stop_seconds is None else round(stop_seconds * rate)
        written, clipped = 0, 0
        try:
            with soundfile.SoundFile(request.out, "w", rate, 1) as file:
                for wav in decode_chunks(run, generation, samples, chunk):
                    file.write(wav.clip(-1, 1))
                    file.flush()
                    written, clipped = written + len(wav), clipped + _count_clipped(wav)
        except BaseException as error:
            if written:
                written = soundfile.info(request.out).frames  # the interruption may have come right after a write
                incomplete = _write_stream_sidecar(run, request, generation, written, clipped, is_complete=False)
                if isinstance(error, KeyboardInterrupt):
                    yield incomplete
            raise
        yield _write_stream_sidecar(run, request, generation, written, clipped, is_complete=stop_seconds is None)


def _write_stream_sidecar(
    run: LoadedRun, request: AudioRequest, generation: Generation, written: int, clipped: int, is_complete: bool
) -> GeneratedFile:
    """Write the sidecar of a streamed sound. written: its samples; clipped: those of them at full scale."""
    frames, seconds = run.codec.num_frames(written), written / run.codec.sample_rate
    frames = min(int(generation.lengths[0]), generation.complete_frames, frames)
    codes = [generation.codes[0, :, :frames].cpu()]
    sidecar.write(request, run, codes, {"rows": 1, "row": 0}, seconds, is_complete)
    return GeneratedFile(request.out, seconds, sidecar.hash_codes(codes), is_complete, clipped / max(1, written))
