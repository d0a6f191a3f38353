"""Audio files: read as float32 at one sample rate, mono or stereo, and written.

The format is detected from the content, whatever the extension (`pipeline.audio.decoding.decoder`). For mono, channels
are averaged; for stereo see `amplitude.split_stereo`. soxr resamples once, at the quality that librosa, the article and
the released models used. A segment of a file equals the same segment of the complete file resampled.

A file with less audio than its header declares is truncated: an error, or with `keep_truncated` what it contains.

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
from pipeline.audio.decoding.decoder import BLOCK, AudioFile
from pipeline.audio.decoding.decoder import RATES as RATES
from pipeline.audio.decoding.decoder import AudioError as AudioError
from pipeline.common.errors import InputError
from pipeline.common.files import write_atomic

Source = str | Path | bytes | BinaryIO
OnFault = Callable[[str], None]  # receives a fault of the channels

CONTEXT = 0.1  # seconds decoded before a segment: by then the resampler's filter has settled to 1e-6
QUALITY = "HQ"  # of soxr
RESAMPLER = f"soxr {QUALITY}"  # recorded in a dataset's manifest
SILENCE = 1e-4  # -80 dBFS: digital silence, dither and a constant offset are below it
NOT_FINITE = "not finite: there are NaN or infinite samples"


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file. frames: per channel, counted rather than estimated; format: container or codec."""

    rate: int
    channels: int
    frames: int
    format: str

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.frames / self.rate


def info(source: Source, *, keep_truncated: bool = False) -> AudioInfo:
    """Describe an audio file; decode it only if its header does not declare the length.

    Raises:
        AudioError: The file is missing, empty, truncated, damaged or not audio.
    """
    with _open(source, keep_truncated) as file:
        return AudioInfo(file.rate, file.channels, file.count(), file.format)


def truncation(source: Source) -> str:
    """Describe how a file is truncated; "" if it is not.

    Raises:
        AudioError: The file is missing, empty, damaged or not audio.
    """
    with _open(source, keep_truncated=True) as file:
        return file.truncation


def read(
    source: Source,
    *,
    start: float = 0.0,
    duration: float | None = None,
    rate: int,
    channels: int = 1,
    keep_truncated: bool = False,
    on_fault: OnFault | None = None,
) -> np.ndarray:
    """Decode a segment of an audio file.

    Args:
        source: A path, or the bytes of a file.
        start: In seconds.
        duration: In seconds; None decodes to the end.
        rate: The sample rate of the result in Hz.
        channels: 1 for mono, 2 for stereo.
        keep_truncated: Accept truncated files.
        on_fault: Called if the channels cancel in the mono mix; then the first channel is returned. By default the mix
            is returned in any case.

    Returns:
        float32 [S], or for stereo [S, 2]; S = round(duration * rate), less if the file ends earlier.

    Raises:
        AudioError: The file is missing, empty, truncated, damaged, not finite or not audio.
    """
    with _open(source, keep_truncated, channels) as file:
        first = _context_start(file, start, rate)
        skip = round(start * rate) - first * rate // file.rate
        stop = None if duration is None else skip + round(duration * rate)
        parts: list[np.ndarray] = []
        decoded = dropped = 0
        for block in _resample_blocks(file, first, rate, _num_columns(file, channels, on_fault)):
            decoded += len(block)
            if decoded <= skip:  # entirely before the segment
                dropped = decoded
                continue
            parts.append(block)
            if stop is not None and decoded >= stop:
                break
        wav = np.concatenate(parts)[skip - dropped :] if parts else np.zeros(0, np.float32)
        wav = wav if stop is None else wav[: stop - skip]
        return _validate(wav, file.name, start, channels, on_fault=on_fault)


def read_segments(
    source: Source,
    cuts: Iterable[tuple[float, float]],
    *,
    rate: int,
    channels: int = 1,
    finite: bool = True,
    keep_truncated: bool = False,
    on_fault: OnFault | None = None,
) -> Iterator[np.ndarray]:
    """Decode a long file once and yield its segments as float32, mono [S] or stereo [S, 2].

    Memory holds one segment and one block, whatever the length of the file; decoding stops after the last segment.
    Each segment equals the same segment of the complete file bit for bit.

    Args:
        source: A path, or the bytes of a file.
        cuts: (start, duration) of each segment in seconds, ordered by start; they may overlap. A segment past the end
            is short.
        rate: The sample rate of the results in Hz.
        channels: 1 for mono, 2 for stereo.
        finite: Raise AudioError for NaN or infinite samples; if False, yield them.
        keep_truncated: Accept truncated files.
        on_fault: See `read`; called before the segment is yielded.

    Raises:
        AudioError: As for `read`, after the segments before the fault were yielded.
    """
    with _open(source, keep_truncated, channels) as file:
        blocks = _resample_blocks(file, 0, rate, _num_columns(file, channels, on_fault))
        buffer, offset = np.zeros(0, np.float32), 0  # buffer[0] is sample `offset` of the file
        for start, duration in cuts:
            first, size = round(start * rate), round(duration * rate)
            assert first >= offset, "cuts must be ordered by their starts"
            parts, decoded = [buffer] if len(buffer) else [], offset + len(buffer)
            while decoded < first + size and (block := next(blocks, None)) is not None:
                if decoded + len(block) <= first:  # entirely before this segment
                    parts, offset = [], decoded + len(block)
                else:
                    parts.append(block)
                decoded += len(block)
            buffer = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            buffer, offset = buffer[first - offset :], first
            yield _validate(buffer[:size].copy(), file.name, start, channels, finite, on_fault)


def write(path: str | Path, wav: np.ndarray, rate: int) -> None:
    """Write an audio file atomically, in the format of its suffix (wav: 16 bits).

    Args:
        path: The file; missing folders are created.
        wav: float [S] or [S, channels]; samples outside -1..1 are clipped.
        rate: Hz.

    Raises:
        InputError: The suffix is not a format that can be written, or the folder cannot be written.
    """
    path = Path(path)
    wav = np.asarray(wav, dtype=np.float32)
    assert np.isfinite(wav).all(), "only finite samples are written"
    kind = path.suffix[1:].upper()
    if kind not in soundfile.available_formats() or not soundfile.default_subtype(kind):
        raise InputError(f"{path}: '{path.suffix}' is not a format that can be written; use .wav, .flac, .ogg or .mp3")
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", rate, 1 if wav.ndim == 1 else wav.shape[1], format=kind) as file:
        for block in np.split(wav, range(BLOCK, len(wav), BLOCK)):  # libsndfile's Vorbis crashes on a minute per call
            file.write(block.clip(-1, 1))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def resample(wav: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Resample a sound, [S] or [S, 2], of at least one sample; at the same rate return it as it is."""
    if rate == to:
        return wav
    resampled = soxr.resample(wav, rate, to, quality=QUALITY)
    return resampled if len(resampled) else np.zeros((1, *wav.shape[1:]), np.float32)


def is_silent(wav: np.ndarray) -> bool:
    """Whether a sound, [S] or [S, 2], stays below -80 dBFS around the mean of each channel."""
    return not len(wav) or bool(np.abs(wav - wav.mean(axis=0)).max() < SILENCE)


class _SeekSafeBytes(io.BytesIO):
    """Bytes whose `seek` out of range returns the old position; an exception would print a traceback in a callback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def _open(source: Source, keep_truncated: bool, channels: int = 1) -> Iterator[AudioFile]:
    """Open a path, bytes, or a stream, which is read into memory and need not be seekable."""
    with ExitStack() as stack:
        if isinstance(source, (str, Path)):
            name = str(source)
            handle: io.FileIO | io.BytesIO
            try:
                if not Path(source).is_dir() and Path(source).exists() and not Path(source).is_file():
                    raise AudioError(name, "not audio: it is a pipe or a device, not a file")
                handle = stack.enter_context(Path(source).open("rb", buffering=0))  # libsndfile shares its position
            except FileNotFoundError:
                raise AudioError(name, "missing: there is no such file") from None
            except OSError as error:
                raise AudioError(name, f"missing: it cannot be opened ({error.strerror})") from None
        else:
            name = str(getattr(source, "name", "audio in memory"))
            handle = _SeekSafeBytes(source if isinstance(source, bytes) else source.read())
        file = AudioFile(name, handle, keep_truncated)
        file.mix = amplitude.split_stereo if channels == 2 else file.mix
        stack.callback(file.close)
        yield file


def _context_start(file: AudioFile, start: float, rate: int) -> int:
    """Return the frame to decode from: CONTEXT before `start`, where input and output samples coincide."""
    grid = file.rate // math.gcd(file.rate, rate)
    first = max(0, int((start - CONTEXT) * file.rate)) // grid * grid
    return min(first, file.seekable_frames // grid * grid)


def _num_columns(file: AudioFile, channels: int, on_fault: OnFault | None) -> int:
    """2 for stereo, and for mono if the first channel is needed beside the mix; else 1."""
    return 2 if channels == 2 or (on_fault and any(stream.channels > 1 for stream in file.streams)) else 1


def _resample_blocks(file: AudioFile, first: int, rate: int, columns: int) -> Iterator[np.ndarray]:
    """Yield blocks at `rate` from frame `first` on, round(frames * rate / file.rate) samples in total.

    Blocks are [S], or [S, 2]: left and right, or for mono the mix and the first channel.
    """
    for own_rate, blocks in file.blocks_by_rate(first):
        blocks = (_with_columns(block, columns) for block in blocks)
        if own_rate == rate:
            yield from blocks
            continue
        stream = soxr.ResampleStream(own_rate, rate, columns, dtype="float32", quality=QUALITY)
        for block in blocks:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(_with_columns(np.zeros(0, np.float32), columns), last=True)


def _with_columns(block: np.ndarray, columns: int) -> np.ndarray:
    """Convert [S] or [S, 2] to [S] (the mix) or [S, 2] (left and right, or the mix and the first channel)."""
    if block.ndim == columns:
        return block
    return np.ascontiguousarray(block[:, 0]) if columns == 1 else np.stack([block, block], axis=1)


def _validate(
    wav: np.ndarray,
    name: str,
    start: float,
    channels: int,
    finite: bool = True,
    on_fault: OnFault | None = None,
) -> np.ndarray:
    """Return the clip, mono [S] of [S] or [S, 2], or stereo; raise AudioError if it is empty or not finite."""
    if not len(wav):
        raise AudioError(name, f"empty: there is no sound from {start:g} s on")
    wav, is_cancelled = amplitude.to_mono(wav) if channels == 1 else (wav, False)
    if finite and not np.isfinite(wav).all():
        raise AudioError(name, NOT_FINITE)
    if is_cancelled and on_fault is not None:
        on_fault(amplitude.CANCELLED)
    return wav
