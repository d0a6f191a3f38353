"""Sound files in, mono float32 at one rate out; and back.

Files are read by content, whatever the extension (`pipeline.audio.decoding.decoder`). Channels are averaged; soxr
resamples once, at the quality that librosa, the article and the released models used. A cut of a file equals the same
cut of the whole file resampled.

A file with less sound than its header declares is truncated: an error, or with `keep_truncated` what is there of it.

Letters: S samples.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from pipeline.audio import amplitude
from pipeline.audio.decoding.decoder import BLOCK, File
from pipeline.audio.decoding.decoder import RATES as RATES
from pipeline.audio.decoding.decoder import AudioError as AudioError
from pipeline.common.errors import InputError
from pipeline.common.files import write_atomic

Source = str | Path | bytes | BinaryIO
OnFault = Callable[[str], None]  # receives what is wrong with a sound's channels

CONTEXT = 0.1  # seconds decoded before a cut: the resampler's filter has settled, to 1e-6 of the whole file's
QUALITY = "HQ"  # of soxr
RESAMPLER = f"soxr {QUALITY}"  # named in a cache's manifest
SILENCE = 1e-4  # -80 dBFS: below it lie digital silence, dither and a constant offset
NOT_FINITE = "not finite: there are NaN or infinite samples"


@dataclass(frozen=True)
class Info:
    """What a sound file holds. frames: per channel, counted rather than estimated; format: container or codec."""

    rate: int
    channels: int
    frames: int
    format: str

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate


def info(source: Source, *, keep_truncated: bool = False) -> Info:
    """Describe a sound file. Decodes it only where its header does not say how long it is.

    Raises:
        AudioError: it is missing, empty, truncated, damaged or not audio.
    """
    with _opened(source, keep_truncated) as file:
        return Info(file.rate, file.channels, file.count(), file.format)


def truncation(source: Source) -> str:
    """How a file holds less sound than its header declares; empty where it does not.

    Raises:
        AudioError: it is missing, empty, damaged or not audio.
    """
    with _opened(source, keep_truncated=True) as file:
        return file.truncation


def read(
    source: Source,
    *,
    start: float = 0.0,
    duration: float | None = None,
    rate: int = 24_000,
    keep_truncated: bool = False,
    on_fault: OnFault | None = None,
) -> np.ndarray:
    """Decode a stretch of a sound file -> float32 [S], mono at `rate`.

    Args:
        source: a path, or the bytes of a file.
        start: seconds.
        duration: seconds; None runs to the end. S = round(duration * rate), less where the file ends before.
        rate: Hz.
        keep_truncated: read what there is of a file with less sound than its header declares.
        on_fault: called where the channels cancel each other in the mix: the first one is read then. Without it the
            mix is read, whatever it is.

    Raises:
        AudioError: it is missing, empty, truncated, damaged, not finite or not audio.
    """
    with _opened(source, keep_truncated) as file:
        first = _context_start(file, start, rate)
        skip = round(start * rate) - first * rate // file.rate
        stop = None if duration is None else skip + round(duration * rate)
        parts: list[np.ndarray] = []
        have = held = 0
        for block in _resampled(file, first, rate, on_fault is not None):
            have += len(block)
            if have <= skip:  # wholly before the stretch: let it go
                held = have
                continue
            parts.append(block)
            if stop is not None and have >= stop:
                break
        wav = np.concatenate(parts)[skip - held :] if parts else np.zeros(0, np.float32)
        wav = wav if stop is None else wav[: stop - skip]
        return _checked(wav, file.name, start, on_fault=on_fault)


def segments(
    source: Source,
    cuts: Iterable[tuple[float, float]],
    *,
    rate: int = 24_000,
    finite: bool = True,
    keep_truncated: bool = False,
    on_fault: OnFault | None = None,
) -> Iterator[np.ndarray]:
    """Decode a long file once and yield each cut (start, duration in seconds) as float32 [S], mono at `rate`.

    The cuts come in order of their starts and may overlap. Memory holds one cut and a block, whatever the file's
    length; decoding stops after the last cut. Each equals the same cut of the whole file, bit for bit. A cut that
    runs past the end is short. finite: False gives cuts with NaN or infinite samples too, and goes on after them.
    on_fault: as of `read`, called before the cut is yielded.
    Raises AudioError as `read` does, after the cuts before the trouble were yielded.
    """
    with _opened(source, keep_truncated) as file:
        blocks = _resampled(file, 0, rate, on_fault is not None)
        held, offset = np.zeros(0, np.float32), 0  # held[0] is sample `offset` of the file
        for start, duration in cuts:
            first, size = round(start * rate), round(duration * rate)
            assert first >= offset, "cuts come in order of their starts"
            parts, have = [held] if len(held) else [], offset + len(held)
            while have < first + size and (block := next(blocks, None)) is not None:
                if have + len(block) <= first:  # wholly before this cut: let it go
                    parts, offset = [], have + len(block)
                else:
                    parts.append(block)
                have += len(block)
            held = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            held, offset = held[first - offset :], first
            yield _checked(held[:size].copy(), file.name, start, finite, on_fault)


def write(path: str | Path, wav: np.ndarray, rate: int) -> None:
    """Write float [S] or [S, channels] in the format that the suffix names (wav: 16 bits), whole or not at all.

    Samples outside -1..1 are clipped. Raises InputError where the suffix names no format or the folder takes no file.
    """
    path = Path(path)
    wav = np.asarray(wav, dtype=np.float32)
    assert np.isfinite(wav).all(), "only finite samples are written"
    kind = path.suffix[1:].upper()
    if kind not in soundfile.available_formats() or not soundfile.default_subtype(kind):
        raise InputError(f"{path}: '{path.suffix}' names no format that can be written; give .wav, .flac, .ogg or .mp3")
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", rate, 1 if wav.ndim == 1 else wav.shape[1], format=kind) as file:
        for block in np.split(wav, range(BLOCK, len(wav), BLOCK)):  # libsndfile's Vorbis dies of a minute at once
            file.write(block.clip(-1, 1))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another folder") from error


def is_silent(wav: np.ndarray) -> bool:
    """Whether [S] holds nothing above -80 dBFS around its mean."""
    return not len(wav) or bool(np.abs(wav - wav.mean()).max() < SILENCE)


class _Bytes(io.BytesIO):
    """Bytes in which a decoder may seek to where nothing is: it is told that it did not, without a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def _opened(source: Source, keep_truncated: bool) -> Iterator[File]:
    """Open a path, or take bytes or a stream (read into memory: it need not seek)."""
    with ExitStack() as stack:
        if isinstance(source, (str, Path)):
            name = str(source)
            handle: io.FileIO | io.BytesIO
            try:
                if not Path(source).is_dir() and Path(source).exists() and not Path(source).is_file():
                    raise AudioError(name, "not audio: it is no file, but a pipe or a device")
                handle = stack.enter_context(Path(source).open("rb", buffering=0))  # libsndfile shares its position
            except FileNotFoundError:
                raise AudioError(name, "missing: there is no such file") from None
            except OSError as error:
                raise AudioError(name, f"missing: it cannot be opened ({error.strerror})") from None
        else:
            name = str(getattr(source, "name", "the given bytes"))
            handle = _Bytes(source if isinstance(source, bytes) else source.read())
        file = File(name, handle, keep_truncated)
        stack.callback(file.close)
        yield file


def _context_start(file: File, start: float, rate: int) -> int:
    """The frame to decode from for a cut at `start` s: CONTEXT before it, where input and output samples coincide."""
    grid = file.rate // math.gcd(file.rate, rate)
    first = max(0, int((start - CONTEXT) * file.rate)) // grid * grid
    return min(first, file.seekable_frames // grid * grid)


def _resampled(file: File, first: int, rate: int, with_channel: bool) -> Iterator[np.ndarray]:
    """Blocks from frame `first` on at `rate`: round(frames * rate / file.rate) samples in all.

    [S], or [S, 2] where the file has several channels and `with_channel`: the mix and the first channel.
    """
    columns = 2 if with_channel and any(stream.channels > 1 for stream in file.streams) else 1
    for own_rate, blocks in file.runs(first):
        blocks = (_with_columns(block, columns) for block in blocks)
        if own_rate == rate:
            yield from blocks
            continue
        stream = soxr.ResampleStream(own_rate, rate, columns, dtype="float32", quality=QUALITY)
        for block in blocks:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(_with_columns(np.zeros(0, np.float32), columns), last=True)


def _with_columns(block: np.ndarray, columns: int) -> np.ndarray:
    """[S] or [S, 2] -> [S] or [S, 2]: the mix alone, or with the first channel."""
    if block.ndim == columns:
        return block
    return np.ascontiguousarray(block[:, 0]) if columns == 1 else np.stack([block, block], axis=1)


def _checked(
    wav: np.ndarray, name: str, start: float, finite: bool = True, on_fault: OnFault | None = None
) -> np.ndarray:
    if not len(wav):
        raise AudioError(name, f"empty: there is no sound from {start:g} s on")
    wav, is_cancelled = amplitude.mono(wav)
    if finite and not np.isfinite(wav).all():
        raise AudioError(name, NOT_FINITE)
    if is_cancelled and on_fault is not None:
        on_fault(amplitude.CANCELLED)
    return wav
