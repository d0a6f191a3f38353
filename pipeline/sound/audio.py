"""Sound files in, mono float32 at one rate out; and back.

libsndfile reads by content, whatever the extension. MPEG audio on which it stumbles (broken frames, junk before the
first) goes on with miniaudio, which finds the next good frame. Channels are averaged; soxr resamples once, at the
quality that librosa, the article and the released models used. A cut of a file equals the same cut of the whole file
resampled.

Letters: S samples.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from pipeline.errors import InputError

Source = str | Path | bytes | BinaryIO

BLOCK = 1 << 16  # source frames decoded at a time, fewer of many channels
CHANNELS = 8  # of which a block holds so many frames
CHUNKS = 10_000  # of a WAV before its sound: more are no WAV, and take hours to pass over
CONTEXT = 0.1  # seconds decoded before a cut: the resampler's filter has settled, to 1e-6 of the whole file's
QUALITY = "HQ"  # of soxr
RESAMPLER = f"soxr {QUALITY}"  # named in a cache's manifest
RATES = range(1_000, 1_000_000)  # a header that says otherwise is broken
UNKNOWN = {0, 0xFFFFFFFF}  # data sizes that a WAV writer leaves when it cannot seek back
SOX = range(0x7FFF_E000, 0x8000_0001)  # ... and what sox and arecord leave: 2 GiB, or some whole blocks fewer
SILENCE = 1e-4  # -80 dBFS: below it lie digital silence, dither and a constant offset
NOT_FINITE = "not finite: there are NaN or infinite samples"
INEXACT = {"MP3", "OGG"}  # formats whose decoders do not land on the same samples after a seek


class AudioError(InputError):
    """A sound file that cannot be used. reason: what is wrong, first a word of its kind.

    Kinds: missing, empty, truncated, damaged, "not audio", "not finite".
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Info:
    """What the header says. frames: per channel, 0 where it does not say (MPEG headers may also be wrong)."""

    rate: int
    channels: int
    frames: int
    format: str

    @property
    def seconds(self) -> float:
        """Duration as the header has it."""
        return self.frames / self.rate


def info(source: Source) -> Info:
    """Read the header only. Raises AudioError for what is missing, empty, truncated or not audio."""
    with _opened(source) as file:
        return Info(file.rate, file.channels, file.frames, file.format)


def read(source: Source, *, start: float = 0.0, duration: float | None = None, rate: int = 24_000) -> np.ndarray:
    """Decode a stretch of a sound file -> float32 [S], mono at `rate`.

    start, duration: seconds; a duration of None runs to the end. S = round(duration * rate), less where the file ends
    before. Raises AudioError for what is missing, empty, truncated, damaged, not finite or not audio.
    """
    with _opened(source) as file:
        first = _context_start(file, start, rate)
        skip = round(start * rate) - first * rate // file.rate
        stop = None if duration is None else skip + round(duration * rate)
        parts: list[np.ndarray] = []
        have = held = 0
        for block in _resampled(file, first, rate):
            have += len(block)
            if have <= skip:  # wholly before the stretch: let it go
                held = have
                continue
            parts.append(block)
            if stop is not None and have >= stop:
                break
        wav = np.concatenate(parts)[skip - held :] if parts else np.zeros(0, np.float32)
        wav = wav if stop is None else wav[: stop - skip]
        return _checked(wav, file.name, start)


def segments(
    source: Source, cuts: Iterable[tuple[float, float]], *, rate: int = 24_000, finite: bool = True
) -> Iterator[np.ndarray]:
    """Decode a long file once and yield each cut (start, duration in seconds) as float32 [S], mono at `rate`.

    The cuts come in order of their starts and may overlap. Memory holds one cut and a block, whatever the file's
    length; decoding stops after the last cut. Each equals the same cut of the whole file, bit for bit. A cut that
    runs past the end is short. finite: False gives cuts with NaN or infinite samples too, and goes on after them.
    Raises AudioError as `read` does, after the cuts before the trouble were yielded.
    """
    with _opened(source) as file:
        blocks = _resampled(file, 0, rate)
        held, offset = np.zeros(0, np.float32), 0  # held[0] is sample `offset` of the file
        for start, duration in cuts:
            first, size = round(start * rate), round(duration * rate)
            assert first >= offset, "cuts come in order of their starts"
            parts, have = [held], offset + len(held)
            while have < first + size and (block := next(blocks, None)) is not None:
                if have + len(block) <= first:  # wholly before this cut: let it go
                    parts, offset = [], have + len(block)
                else:
                    parts.append(block)
                have += len(block)
            held = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            held, offset = held[first - offset :], first
            yield _checked(held[:size].copy(), file.name, start, finite)


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
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.getvalue())
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another folder") from error


def is_silent(wav: np.ndarray) -> bool:
    """Whether [S] holds nothing above -80 dBFS around its mean."""
    return not len(wav) or bool(np.abs(wav - wav.mean()).max() < SILENCE)


class _File:
    """An open sound file: what its header says, and its frames as mono blocks."""

    def __init__(self, name: str, handle: io.FileIO | io.BytesIO) -> None:
        self.name, self._handle = name, handle
        self._sound: soundfile.SoundFile | None = None
        head = handle.read(4)
        size = handle.seek(0, io.SEEK_END)
        if size == 0:
            raise AudioError(name, "empty: the file has no bytes")
        self._check_promise(size)
        handle.seek(0)
        self._open(mpeg=name.lower().endswith(".mp3") or head[:3] == b"ID3" or _is_mpeg_sync(head))
        if self.rate not in RATES:
            raise AudioError(name, f"damaged: the header says {self.rate} Hz")

    def _open(self, mpeg: bool) -> None:
        # A path would let soundfile judge by the extension ('.raw' asks for a rate): it gets the open file.
        try:
            fd = self._handle.fileno()
        except io.UnsupportedOperation:
            fd = None
        try:
            sound = soundfile.SoundFile(self._handle if fd is None else fd, closefd=False)
        except soundfile.LibsndfileError as error:
            if not mpeg:
                raise AudioError(self.name, f"not audio: {_plain(error)}") from None
            self.rate, self.channels, self.frames = _mpeg_info(self._bytes(), self.name)
            self.format = "MP3"
        else:
            self._sound = sound
            self.rate, self.channels, self.format = sound.samplerate, sound.channels, sound.format
            self.frames = sound.frames if sound.frames < 1 << 62 else 0  # libsndfile says 2**63-1 for "unknown"

    def _check_promise(self, size: int) -> None:
        """Raise where a WAV's data chunk is shorter than its header says: libsndfile would not tell."""
        self._handle.seek(0)
        if self._handle.read(4) != b"RIFF" or self._handle.read(8)[4:] != b"WAVE":
            return
        for _ in range(CHUNKS):
            if len(head := self._handle.read(8)) < 8:
                return
            tag, length = struct.unpack("<4sI", head)
            here = self._handle.tell()
            if tag == b"data":
                if length not in UNKNOWN and length not in SOX and here + length > size:
                    promise = f"{size - here} of the {length} bytes that its header promises"
                    raise AudioError(self.name, f"truncated: the file holds {promise}")
                return
            self._handle.seek(here + length + length % 2)
        raise AudioError(self.name, f"damaged: {CHUNKS} chunks and no sound in them")

    def _bytes(self) -> bytes:
        self._handle.seek(0)
        return self._handle.read()

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Frames from `first` on, channels averaged: float32 [up to BLOCK].

        Raises AudioError where the file is damaged or ends too soon, behind the blocks before that.
        """
        done = first
        try:
            for block in self._sound_blocks(first):
                done += len(block)
                yield block
        except soundfile.LibsndfileError as error:
            if self.format != "MP3":
                raise AudioError(self.name, f"damaged at {done / self.rate:.1f} s: {_plain(error)}") from None
            self._sound = None
        if self._sound is None:
            yield from _mpeg_blocks(self._bytes(), self.name, self.channels, self.rate, done)
        elif self.format not in INEXACT and done < self.frames:
            raise AudioError(self.name, f"truncated: {done} of the {self.frames} frames that its header promises")

    def _sound_blocks(self, first: int) -> Iterator[np.ndarray]:
        if self._sound is None:
            return
        if first:
            self._sound.seek(first)
        size = BLOCK * CHANNELS // max(CHANNELS, self.channels)
        while len(block := self._sound.read(size, dtype="float32", always_2d=True)):
            yield block[:, 0].copy() if self.channels == 1 else block.mean(axis=1, dtype=np.float32)

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()


class _Bytes(io.BytesIO):
    """Bytes in which a decoder may seek to where nothing is: it is told that it did not, without a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def _opened(source: Source) -> Iterator[_File]:
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
        file = _File(name, handle)
        stack.callback(file.close)
        yield file


def _context_start(file: _File, start: float, rate: int) -> int:
    """The frame to decode from for a cut at `start` s: CONTEXT before it, where input and output samples coincide."""
    if file.format in INEXACT or file.frames == 0:
        return 0
    grid = file.rate // math.gcd(file.rate, rate)
    first = max(0, int((start - CONTEXT) * file.rate)) // grid * grid
    return min(first, file.frames // grid * grid)


def _resampled(file: _File, first: int, rate: int) -> Iterator[np.ndarray]:
    """Blocks from frame `first` on at `rate`: round(frames * rate / file.rate) samples in all."""
    if file.rate == rate:
        yield from file.blocks(first)
        return
    stream = soxr.ResampleStream(file.rate, rate, 1, dtype="float32", quality=QUALITY)
    for block in file.blocks(first):
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked(wav: np.ndarray, name: str, start: float, finite: bool = True) -> np.ndarray:
    if not len(wav):
        raise AudioError(name, f"empty: there is no sound from {start:g} s on")
    if finite and not np.isfinite(wav).all():
        raise AudioError(name, NOT_FINITE)
    return wav


def _is_mpeg_sync(head: bytes) -> bool:
    """Eleven bits set, and a layer (AAC has none)."""
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and bool(head[1] & 0x06)


def _mpeg_info(content: bytes, name: str) -> tuple[int, int, int]:
    """Rate, channels and frames, found by reading the MPEG frames through."""
    import miniaudio

    try:
        found = miniaudio.mp3_get_info(content)
    except miniaudio.DecodeError:
        raise AudioError(name, "not audio: no MPEG frame is in it") from None
    return found.sample_rate, found.nchannels, found.num_frames


def _mpeg_blocks(content: bytes, name: str, channels: int, rate: int, first: int) -> Iterator[np.ndarray]:
    """MPEG frames from `first` on, past whatever is broken: float32 [up to BLOCK], channels averaged."""
    import miniaudio

    try:
        stream = miniaudio.stream_memory(content, miniaudio.SampleFormat.FLOAT32, channels, rate, frames_to_read=BLOCK)
    except miniaudio.DecodeError:
        raise AudioError(name, "damaged: no MPEG frame in it can be decoded") from None
    done = 0
    for samples in stream:
        block = np.frombuffer(samples, np.float32).reshape(-1, channels).mean(axis=1, dtype=np.float32)
        if done + len(block) > first:
            yield block[max(0, first - done) :]
        done += len(block)


def _plain(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".")
