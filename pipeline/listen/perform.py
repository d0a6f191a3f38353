"""Pieces played: clips of one shape in batches, decoded and written as soon as they are whole.

Letters: K codebooks, T frames, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.listen import sidecar
from pipeline.listen.blend import join
from pipeline.listen.instrument import Instrument
from pipeline.listen.pieces import Clip, Piece, Window
from pipeline.lm.choice import Sampling
from pipeline.lm.sampling import Plan, Take
from pipeline.sound import audio


@dataclass(frozen=True)
class Made:
    """A sound file that was written; whole: not interrupted."""

    path: Path
    seconds: float
    codes_sha256: str
    whole: bool = True


def take_of(
    instrument: Instrument, clips: Sequence[Clip], samples: int, sampling: Sampling, window: Window | None
) -> Take:
    """Clips of one shape, ready to be played together."""
    first = clips[0]
    prompts = [
        (frame, torch.stack([clip.prompts[i][1] for clip in clips])) for i, (frame, _) in enumerate(first.prompts)
    ]
    given = None if first.given is None else torch.stack([clip.given for clip in clips])  # type: ignore[misc]
    plan = Plan(
        frames=instrument.codec.frames(samples),
        seeds=[clip.seed for clip in clips],
        samplings=[sampling] * len(clips),
        prompts=prompts,
        given=given,
        window=window and window.frames,
        hop=window and window.hop,
    )
    return Take(instrument.player, plan)


def perform(
    instrument: Instrument,
    pieces: Sequence[Piece],
    sampling: Sampling,
    window: Window | None,
    batch: int,
    repeat: Mapping[str, int] | None = None,
) -> Iterator[Made]:
    """Make pieces, at most `batch` clips at once, and write each as soon as it is whole.

    repeat: rows and row of the batch that the one clip was made in, to be made again in a batch of that size.
    Interrupted, what is made of the pieces under way is written too.
    """
    jobs = [(p, c) for p, piece in enumerate(pieces) for c in range(len(piece.clips))]
    codes: dict[tuple[int, int], Tensor] = {}
    for part in _batches(pieces, jobs, batch):
        clips = [pieces[p].clips[c] for p, c in part]
        rows, row = (repeat["rows"], repeat["row"]) if repeat and len(clips) == 1 else (len(clips), 0)
        take = take_of(instrument, clips * (rows // len(clips)), pieces[part[0][0]].samples, sampling, window)
        whole = False
        try:
            for _ in take.chunks():
                pass
            whole = True
        finally:
            for i, job in enumerate(part):
                codes[job] = take.codes[row + i, :, : min(int(take.lengths[row + i]), take.complete)].cpu()
            if not whole:  # interrupted, or stopped by an error: what is made is kept
                for p in dict.fromkeys(p for p, _ in part):
                    mine = [codes[p, c] for c in range(len(pieces[p].clips)) if (p, c) in codes]
                    write(instrument, pieces[p], [clip for clip in mine if clip.shape[1]], (rows, row), whole=False)
        for p in dict.fromkeys(p for p, _ in part):
            mine = [codes.get((p, c)) for c in range(len(pieces[p].clips))]
            if all(clip is not None for clip in mine):
                place = (rows, row + [q for q, _ in part].index(p))
                made = write(instrument, pieces[p], mine, place, whole=True)  # type: ignore[arg-type]
                if made is not None:
                    yield made


def _batches(pieces: Sequence[Piece], jobs: Sequence[tuple[int, int]], batch: int) -> Iterator[list[tuple[int, int]]]:
    """Jobs in order, those of one shape together, at most `batch` of them."""
    part: list[tuple[int, int]] = []
    for p, c in jobs:
        if part and (len(part) == batch or _shape(pieces, part[-1]) != _shape(pieces, (p, c))):
            yield part
            part = []
        part.append((p, c))
    if part:
        yield part


def _shape(pieces: Sequence[Piece], job: tuple[int, int]) -> tuple[object, ...]:
    piece, clip = pieces[job[0]], pieces[job[0]].clips[job[1]]
    given = 0 if clip.given is None else clip.given.shape[1]
    return piece.samples, given, *(frame for frame, _ in clip.prompts)


def write(
    instrument: Instrument, piece: Piece, codes: Sequence[Tensor], place: tuple[int, int], whole: bool
) -> Made | None:
    """Decode clips [K, T], each alone so that the others change nothing, and write the piece and its sidecar."""
    rate = instrument.codec.sample_rate
    wavs = [
        instrument.codec.decode(clip[None].long())[0, 0].cpu().numpy()[: piece.samples]
        for clip in codes
        if clip.shape[1]
    ]
    if not wavs:
        return None
    wav = join(wavs, piece.fade)
    audio.write(piece.out, wav, rate)
    sidecar.write(piece, instrument, codes, {"rows": place[0], "row": place[1]}, whole)
    return Made(piece.out, len(wav) / rate, sidecar.digest(codes), whole)


def stream(
    instrument: Instrument, clip: Clip, samples: int, sampling: Sampling, window: Window | None, chunk: float
) -> Iterator[np.ndarray]:
    """A clip's sound [S] while it is made, some `chunk` seconds at a time; joined, it is the sound made whole."""
    yield from _sound(instrument, take_of(instrument, [clip], samples, sampling, window), samples, chunk)


def _sound(instrument: Instrument, take: Take, samples: int, chunk: float) -> Iterator[np.ndarray]:
    size = max(1, round(chunk * instrument.codec.frame_rate))
    for wav in instrument.codec.stream_decode(take.chunks(size)):
        part = wav[0, 0, :samples].cpu().numpy()
        samples -= len(part)
        if len(part):
            yield part


def perform_streaming(
    instrument: Instrument, pieces: Sequence[Piece], sampling: Sampling, window: Window | None, chunk: float
) -> Iterator[Made]:
    """Make pieces of one clip one after the other, each written to its file while it is made."""
    rate = instrument.codec.sample_rate
    for piece in pieces:
        if len(piece.clips) != 1:
            raise InputError("stream=true: an interpolation is joined from whole clips; stream mode=morph instead")
        take = take_of(instrument, piece.clips, piece.samples, sampling, window)
        piece.out.parent.mkdir(parents=True, exist_ok=True)
        written, whole = 0, False
        try:
            with soundfile.SoundFile(piece.out, "w", rate, 1) as file:
                for wav in _sound(instrument, take, piece.samples, chunk):
                    file.write(wav.clip(-1, 1))
                    file.flush()
                    written += len(wav)
            whole = True
        finally:
            codes = [take.codes[0, :, : min(int(take.lengths[0]), take.complete)].cpu()]
            if written:
                sidecar.write(piece, instrument, codes, {"rows": 1, "row": 0}, whole)
        yield Made(piece.out, written / rate, sidecar.digest(codes))
