"""Generation of sound files: clips in batches, decoded and written as soon as they are complete, or while they grow.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipeline.audio import audio_io
from pipeline.audio.codecs.base import to_array
from pipeline.generation import sidecar
from pipeline.generation.generator import Generation, GenerationSpec
from pipeline.generation.guidance import Guidance
from pipeline.generation.interpolation import crossfade
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.request import AudioRequest, ClipRequest
from pipeline.generation.sidecar import BatchSlot, Sidecar

Job = tuple[int, int]  # the number of a request, and of a clip in it
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
        clips: Its clips, [S] or [S, 2], before they were joined; empty if it was streamed.
    """

    path: Path
    seconds: float
    codes_sha256: str
    is_complete: bool
    clipped_fraction: float
    clips: Sequence[np.ndarray] = ()


def start_generation(run: LoadedRun, request: AudioRequest, clips: Sequence[ClipRequest]) -> Generation:
    """A generation of clips like those of a request, with the same length, keyframes' times and prefix length."""
    keyframes = [
        (frame, {name: torch.stack([clip.keyframes[i][1][name] for clip in clips]) for name in values})
        for i, (frame, values) in enumerate(clips[0].keyframes)
    ]
    prefixes = [clip.prefix_codes for clip in clips if clip.prefix_codes is not None]
    spec = GenerationSpec(
        frames=run.codec.num_frames(request.samples),
        seeds=[clip.seed for clip in clips],
        sampling=request.settings.sampling,
        keyframes=keyframes,
        prefix_codes=torch.stack(prefixes) if prefixes else None,
        window=request.window,
    )
    return Generation(run.engine, spec)


def generate_clips(run: LoadedRun, request: AudioRequest) -> Iterator[tuple[ClipRequest, Tensor]]:
    """Generate the clips of a request without files; yields each with its codes [K, T]."""
    for jobs in _batches([request], [(0, c) for c in range(len(request.clips))], _batch_size(run, request)):
        clips = [request.clips[c] for _, c in jobs]
        generation = start_generation(run, request, clips)
        for _ in generation.chunks():
            pass
        yield from zip(clips, _codes_by_job(generation, jobs, 0).values(), strict=True)


def generate_files(
    run: LoadedRun,
    requests: Sequence[AudioRequest],
    status_seconds: float = 1.0,
    on_status: Callable[[str], None] = lambda line: None,
    on_codes: OnCodes = lambda codes: None,
    original: Sidecar | None = None,
) -> Iterator[GeneratedFile]:
    """Generate sound files, and write each as soon as it is complete, or with `stream` while it is generated.

    Args:
        run: The run that generates.
        requests: The sounds; with `stream` each has one clip.
        status_seconds: The length of sound after which the functions are called; with `stream` it is `chunk`.
        on_status: Gets a line about the progress.
        on_codes: Gets the new codes.
        original: The sidecar of the single sound that is generated again, as far as it was generated.

    Yields:
        The files. After a KeyboardInterrupt also those that are incomplete; then it is raised again.
    """
    jobs = [(r, c) for r, request in enumerate(requests) for c in range(len(request.clips))]
    stop_frames = original.frames if original else None
    jobs, settings = jobs[: len(stop_frames)] if stop_frames else jobs, requests[0].settings
    size = max(1, round((settings.chunk if settings.stream else status_seconds) * run.codec.frame_rate))
    codes, first = dict[Job, Tensor](), 1  # first: the number of a batch's first clip
    for part in _batches(requests, jobs, _batch_size(run, requests[0])):
        clips, request = [requests[r].clips[c] for r, c in part], requests[part[0][0]]
        label = f"clip {first}" if len(clips) == 1 else f"clips {first}-{first + len(clips) - 1}"
        slot = original.batch if original and len(clips) == 1 else BatchSlot(rows=len(clips), row=0)
        generation = start_generation(run, request, clips * (slot.rows // len(clips)))
        slots = {r: BatchSlot(rows=slot.rows, row=slot.row + [q for q, _ in part].index(r)) for r, _ in part}
        stream = _SoundStream(run, request, original) if settings.stream else None
        stop = max(stop_frames[c] for _, c in part) if stop_frames and not stream else None
        try:
            for new_codes in generation.chunks(size):
                on_codes(new_codes)
                on_status(f"{label} of {len(jobs)}: {_progress(run, generation)}")
                if stream:
                    stream.push(new_codes)
                if (stop is not None and generation.complete_frames >= stop) or (stream and not stream.samples_left):
                    break
            if stream:
                stream.flush()
        except BaseException as error:  # write what is generated so far
            codes |= _codes_by_job(generation, part, slot.row)
            for r in slots:
                file = _write_file(run, requests[r], _codes_of_request(codes, r), slots[r], False, stream)
                if file.seconds and isinstance(error, KeyboardInterrupt):
                    yield file
            raise
        codes |= _codes_by_job(generation, part, slot.row, None if stream else stop_frames)
        first += len(clips)
        for r in slots:
            clip_codes = _codes_of_request(codes, r)
            if len(clip_codes) == len(stop_frames or requests[r].clips):
                yield _write_file(run, requests[r], clip_codes, slots[r], stop_frames is None, stream)


def _batch_size(run: LoadedRun, request: AudioRequest) -> int:
    """The number of clips to generate at once, at most."""
    settings = request.settings
    if settings.stream:
        return 1
    frames = request.window.frames if request.window else run.codec.num_frames(request.samples)
    conditions = {name for clip in request.clips for _, values in clip.keyframes for name in values}
    rows = Guidance.plan(settings.sampling.guidance, conditions).rows_per_clip
    return run.best_batch(frames, rows) if settings.batch == "auto" else settings.batch


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
    for _, group in itertools.groupby(jobs, lambda job: _shape(requests, job)):
        same_shape = list(group)
        yield from (same_shape[first : first + batch] for first in range(0, len(same_shape), batch))


def _shape(requests: Sequence[AudioRequest], job: Job) -> tuple[object, ...]:
    """What must be equal for clips to be generated in one batch: length, prefix length, and what keyframes change."""
    request, clip = requests[job[0]], requests[job[0]].clips[job[1]]
    prefix_frames = 0 if clip.prefix_codes is None else clip.prefix_codes.shape[1]
    return request.samples, prefix_frames, *((frame, *sorted(values)) for frame, values in clip.keyframes)


def _write_file(
    run: LoadedRun,
    request: AudioRequest,
    codes: Sequence[Tensor],
    slot: BatchSlot,
    is_complete: bool,
    stream: _SoundStream | None,
) -> GeneratedFile:
    """Decode clips [K, T], join them, and write the sound and its sidecar; a streamed sound is written already.

    Each clip is decoded alone, so that it does not depend on the others.
    """
    rate, clips = run.codec.sample_rate, list[np.ndarray]()
    if stream:
        samples, clipped = stream.close(), stream.clipped
        codes = [codes[0][:, : run.codec.num_frames(samples)]]
    else:
        clips = [run.codec.decode_clip(clip)[: request.samples] for clip in codes if clip.shape[1]]
        wav = crossfade(clips, request.crossfade) if clips else run.codec.silence(0)
        samples, clipped = len(wav), _count_clipped(wav)
        if is_complete or samples:
            audio_io.write(request.out, wav, rate)
    if is_complete or samples:
        sidecar.write(request, run, codes, slot, samples / rate, is_complete)
    clipped_fraction = clipped / max(1, samples * run.codec.channels)
    return GeneratedFile(request.out, samples / rate, sidecar.hash_codes(codes), is_complete, clipped_fraction, clips)


def _count_clipped(wav: np.ndarray) -> int:
    """The number of samples of a sound, of all its channels, at full scale, which are clipped in the file."""
    return int((np.abs(wav) >= 1).sum())


class _SoundStream:
    """A sound of one clip that is decoded and written to its file while it is generated.

    Attributes:
        samples_left: The samples that are still to be written.
        clipped: The number of samples at full scale.
    """

    def __init__(self, run: LoadedRun, request: AudioRequest, original: Sidecar | None) -> None:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        rate = run.codec.sample_rate
        self.samples_left = round(original.seconds * rate) if original and original.frames else request.samples
        self.clipped, self._path, self._decoder = 0, request.out, run.codec.streaming_decoder()
        self._file = soundfile.SoundFile(request.out, "w", rate, run.codec.channels)

    def push(self, codes: Tensor) -> None:
        """Decode codes [1, K, t] and write what is complete."""
        self._write(self._decoder.push(codes))

    def flush(self) -> None:
        """Write the rest of the sound."""
        if self.samples_left:
            self._write(self._decoder.flush())

    def close(self) -> int:
        """Close the file, and return its number of samples: an interruption may have come right after a write."""
        self._file.close()
        return int(soundfile.info(self._path).frames)

    def _write(self, sound: Tensor) -> None:
        wav = to_array(sound[0, :, : self.samples_left])
        if len(wav):
            self._file.write(wav.clip(-1, 1))
            self._file.flush()
            self.samples_left, self.clipped = self.samples_left - len(wav), self.clipped + _count_clipped(wav)
