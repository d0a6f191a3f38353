"""Decodes an audio file: its streams, their exact lengths, and their frames in blocks.

libsndfile decodes. This module handles what it does not: containers whose header disagrees with their size, lengths
that are only estimated, several streams in one file, broken MPEG frames, FLAC of unknown length. One rule holds for all
formats: a file with less audio than its header declares is truncated (an error, unless `keep_truncated`); one with more
is read to its end.

Blocks are what `mix` returns; by default [S] for one channel, else [S, 2]: the mean of the channels, and the first one.

Letters: S samples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from pipeline.audio import amplitude
from pipeline.audio.decoding import chunks, flac, formats, mpeg, ogg
from pipeline.audio.decoding.splice import Handle, Part, splice
from pipeline.common.errors import InputError
from pipeline.common.sound_files import unsupported

BLOCK = 1 << 16  # source frames decoded at a time; fewer if there are many channels
BLOCK_CHANNELS = 8  # a block of this many channels has BLOCK frames
RATES = range(1_000, 1_000_000)  # Hz; a header with another rate is broken
INEXACT = {"MP3", "OGG"}  # formats whose decoders return other samples after a seek
MAX_MISSING_SECONDS = 0.1  # by which the audio of these may be shorter than declared
UNKNOWN = 1 << 62  # frames; libsndfile reports 2**63-1 if the header declares no length
DECLARED = "that its header declares"
FIXED_SIZE_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # subtypes whose size determines the length


class AudioError(InputError):
    """An audio file cannot be used.

    `reason` starts with its kind: missing, empty, truncated, damaged, "not audio", "unsupported format", "not finite",
    or a fault of `amplitude`.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class _ForwardReader(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A sequential reader: soundfile's seek after each block of a seekable file fails if the length is unknown."""

    def seekable(self) -> bool:
        return False

    def read_block(self, size: int) -> tuple[np.ndarray, soundfile.LibsndfileError | None]:
        """Return up to `size` frames [S, channels], fewer for many channels, and the decoder's error, if any."""
        size = size * BLOCK_CHANNELS // max(BLOCK_CHANNELS, self.channels)
        block = np.full((size, self.channels), np.nan, np.float32)
        try:
            return self.read(out=block), None
        except soundfile.LibsndfileError as error:
            good = ~np.isnan(block[:, 0])
            return block[: size if good.all() else int(good.argmin())], error


class _Stream(Protocol):
    """An audio stream. frames: per channel; None if only decoding can determine them."""

    rate: int
    channels: int
    frames: int | None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the frames from `first` on in blocks, float32 [S] or [S, 2], S up to BLOCK."""
        ...

    def close(self) -> None:
        """Close the decoder; `blocks` opens a new one."""
        ...


class _SndfileStream:
    """A stream that libsndfile reads. parts: its position in the file; None for the complete file."""

    def __init__(self, file: AudioFile, parts: list[Part] | None = None) -> None:
        self._file, self._parts = file, parts
        sound = file.open_decoder(parts)
        self._sound: _ForwardReader | None = sound
        self.rate, self.channels = sound.samplerate, sound.channels
        self.format, self.subtype = sound.format, sound.subtype
        self.declared: int | None = sound.frames if sound.frames < UNKNOWN else None
        self.frames = self.declared

    def close(self) -> None:
        """See `_Stream`."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def has_last_frame(self) -> bool:
        """Whether the last frame that the header declares can be decoded."""
        assert self.declared
        with self._file.open_decoder(self._parts) as sound:
            try:
                sound.seek(self.declared - 1)
                return len(sound.read(1)) == 1
            except soundfile.LibsndfileError:
                return False

    def count(self) -> int:
        """Decode the stream and return its number of frames; raise AudioError as `blocks` does."""
        return sum(map(len, self.blocks(0)))

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """See `_Stream`; raise AudioError after the last good block if the file is damaged or truncated."""
        sound, self._sound = self._sound or self._file.open_decoder(self._parts), None
        done, error = first, None
        with sound:
            try:
                sound.seek(first) if first else None
            except soundfile.LibsndfileError as broken:
                error = broken
            while error is None:
                block, error = sound.read_block(BLOCK)
                done += len(block)
                if not len(block):
                    break
                yield self._file.mix(block)
        if error is not None:
            if self.format != "FLAC" or self._file.bytes_left():
                raise AudioError(self._file.name, f"damaged at {done / self.rate:.1f} s: {_message(error)}")
            if self.declared is None:
                self._file.mark_truncated(f"it ends within a frame, at {done / self.rate:.1f} s")
        lag = MAX_MISSING_SECONDS * self.rate if self.format in INEXACT else 0
        if self.declared is not None and done < self.declared - lag:
            self._file.mark_truncated(f"it holds {done} of the {self.declared} frames {DECLARED}")


class _MpegStream:
    """A stream of MPEG frames. sound: libsndfile's decoder of the file, if it decodes exactly this stream."""

    def __init__(self, file: AudioFile, stream: mpeg.MpegStream, sound: _ForwardReader | None) -> None:
        self._file, self._stream, self._sound = file, stream, sound
        self.rate, self.channels = stream.rate, stream.channels
        self.frames: int | None = stream.frames

    def close(self) -> None:
        """See `_Stream`."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """See `_Stream`; replace broken MPEG frames by silence; raise AudioError if no frame can be decoded."""
        stream = self._stream
        # begin, end and at are counted from the first sample of the first MPEG frame
        begin, end = stream.skip + first, stream.skip + stream.frames
        at = stream.skip if self._sound is not None else 0  # libsndfile skips the encoder's delay itself
        number, decoded = 0, False
        while at < end:
            for wav in self._decode_from(number, end - at):
                decoded = True
                if len(cut := wav[max(0, begin - at) : end - at]):
                    yield cut
                at += len(wav)
                if at >= end:
                    break
            else:  # the MPEG frame at `at` cannot be decoded
                number = at // stream.samples + 1
                lost = np.zeros(number * stream.samples - at, np.float32)
                if len(cut := lost[max(0, begin - at) : end - at]):
                    yield cut
                at += len(lost)
        if not decoded and stream.frames:
            raise AudioError(self._file.name, "damaged: no MPEG frame in it can be decoded")

    def _decode_from(self, number: int, left: int) -> Iterator[np.ndarray]:
        """Yield the samples that can be decoded from an MPEG frame on, at most `left`."""
        sound, self._sound = self._sound, None
        try:
            sound = sound or self._file.open_decoder(self._stream.parts(number), self._stream.size)
        except soundfile.LibsndfileError:
            return
        with sound:
            error = None
            while error is None and left:
                block, error = sound.read_block(min(BLOCK, left))
                left -= len(block)
                if not len(block):
                    return
                yield self._file.mix(block)


class AudioFile:
    """An open audio file.

    Attributes:
        streams: The consecutive audio streams; most files have one.
        rate, channels: Of the first stream.
        format: The container or codec, as libsndfile names it.
        truncation: How the file is truncated; "" if it is not.
        mix: Mixes the channels of a block [S, C].
    """

    def __init__(self, name: str, handle: Handle, keep_truncated: bool = False) -> None:
        self.name, self._handle, self._keep = name, handle, keep_truncated
        self.mix: Callable[[np.ndarray], np.ndarray] = amplitude.mix_channels
        self.truncation = ""
        self._size = handle.seek(0, io.SEEK_END)
        if self._size == 0:
            raise AudioError(name, "empty: the file has no bytes")
        self.format = ""
        self.streams: list[_Stream] = []
        try:
            self.streams = self._containers() or self._ogg() or self._others()
        except chunks.TooManyChunksError:
            raise AudioError(name, f"damaged: {chunks.MAX_CHUNKS} chunks and no sound in them") from None
        self.rate, self.channels = self.streams[0].rate, self.streams[0].channels
        for stream in self.streams:
            if stream.rate not in RATES:
                raise AudioError(name, f"damaged: the header says {stream.rate} Hz")

    @property
    def seekable_frames(self) -> int:
        """The number of frames at which decoding may start; 0 if it must start at the beginning."""
        one = len(self.streams) == 1 and self.format not in INEXACT
        return self.streams[0].frames or 0 if one else 0

    def count(self) -> int:
        """Return the frames per channel at the first stream's rate; decode the file if its header lacks them."""
        total = 0
        for stream in self.streams:
            frames = sum(map(len, stream.blocks(0))) if stream.frames is None else stream.frames
            total += round(frames * self.rate / stream.rate)
        return total

    def blocks_by_rate(self, first: int) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        """Yield (rate, blocks) for each run of streams of one rate, from frame `first` on.

        Raises:
            AudioError: The file is damaged or truncated; raised after the last good block.
        """
        for rate, streams in groupby(self.streams, key=lambda stream: stream.rate):
            yield rate, chain.from_iterable(stream.blocks(first) for stream in streams)

    def close(self) -> None:
        """Close the decoders."""
        for stream in self.streams:
            stream.close()

    def open_decoder(self, parts: list[Part] | None, extra: int = 0) -> _ForwardReader:
        """Open libsndfile's decoder of the file, or of parts of it; raise LibsndfileError if it is not audio."""
        if parts is not None:
            return _ForwardReader(splice(self._handle, parts, extra))
        self._handle.seek(0)
        try:
            return _ForwardReader(self._handle.fileno(), closefd=False)  # a path would make soundfile use the extension
        except io.UnsupportedOperation:
            return _ForwardReader(self._handle)

    def bytes_left(self) -> int:
        """Return the number of bytes that the decoder has not read yet."""
        return max(0, self._size - self._handle.tell())

    def mark_truncated(self, what: str) -> None:
        """Record that the file is truncated; raise AudioError unless truncated files are accepted."""
        self.truncation = f"truncated: {what}"
        if not self._keep:
            raise AudioError(self.name, self.truncation)

    def _decoded(self, parts: list[Part] | None, keep_open: bool = True) -> _SndfileStream:
        try:
            stream = _SndfileStream(self, parts)
        except soundfile.LibsndfileError as error:
            raise self._not_audio(error) from None
        self.format = self.format or stream.format
        if not keep_open:
            stream.close()
        return stream

    def _not_audio(self, error: soundfile.LibsndfileError) -> AudioError:
        """Return the error for a file that libsndfile cannot open: an unsupported format, or not audio."""
        self._handle.seek(0)
        if name := formats.name_format(self._handle.read(formats.HEAD) or b""):
            return AudioError(self.name, unsupported(name, Path(self.name).suffix))
        return AudioError(self.name, f"not audio: {_message(error)}")

    def _containers(self) -> list[_Stream]:
        """Return the streams of WAV, AIFF and other containers whose headers declare the size of the audio."""
        streams: list[_Stream] = []
        sounds = chunks.find_sound_chunks(self._handle, self._size)
        for sound in sounds:
            if sound.is_truncated:
                self.mark_truncated(f"it holds {sound.present} of the {sound.declared} bytes of sound {DECLARED}")
            if sound.is_consistent():
                parts: list[Part] | None = [range(sound.begin, sound.end)] if len(sounds) > 1 else None
            else:
                try:
                    parts = sound.with_correct_header(self._handle)
                except OverflowError:
                    raise AudioError(
                        self.name, "damaged: its header cannot declare as much sound as it holds"
                    ) from None
            stream = self._decoded(parts, keep_open=len(sounds) == 1)
            if stream.subtype.startswith("MPEG"):
                stream.close()
                streams += self._mpeg(sound.start, sound.start + sound.present, None)
                continue
            if not stream.subtype.startswith(FIXED_SIZE_SUBTYPES):
                stream.frames = None
            streams.append(stream)
        return streams

    def _ogg(self) -> list[_Stream]:
        """Return the streams of an Ogg file; [] for other formats."""
        self._handle.seek(0)
        if self._handle.read(4) != b"OggS":
            return []
        streams = ogg.find_streams(self._handle, self._size)
        if streams and streams[-1].is_cut:
            self.mark_truncated("it ends within a page")
        is_single = len(streams) == 1 and streams[0].codec != "FLAC"
        return [self._decoded(None if is_single else stream.parts(), keep_open=is_single) for stream in streams]

    def _others(self) -> list[_Stream]:
        """Return the streams of FLAC, MPEG audio, and any other format that libsndfile supports."""
        self._handle.seek(0)
        head = self._handle.read(4) or b""
        try:
            sound = self.open_decoder(None)
        except soundfile.LibsndfileError as error:
            refusal, is_mpeg = self._not_audio(error), head[:3] == b"ID3" or _is_mpeg_sync(head)
            if refusal.reason.startswith("unsupported") or not (is_mpeg or self.name.lower().endswith(".mp3")):
                raise refusal from None
            sound = None
        if sound is None or sound.format == "MP3":
            return self._mpeg(0, self._size, sound)
        sound.close()
        stream = self._decoded(None)
        if stream.format == "FLAC":
            return self._flac(stream)
        stream.frames = None
        return [stream]

    def _mpeg(self, start: int, stop: int, sound: _ForwardReader | None) -> list[_Stream]:
        """Return the MPEG streams. sound: libsndfile's decoder, which only knows the first and estimates its length."""
        self.format = "MP3"
        position = self._handle.tell()  # also the decoder's
        streams = mpeg.find_streams(self._handle, start, stop)
        self._handle.seek(position)
        if not streams:
            raise AudioError(self.name, "not audio: no MPEG frame is in it")
        for stream in streams:
            if stream.is_truncated:
                present, declared = len(stream.offsets), stream.declared
                self.mark_truncated(f"it holds {present} of the {declared} MPEG frames {DECLARED}")
        (one, *more), decoder = streams, sound
        if sound is not None and (more or not _decodes_exactly(one, sound)):
            sound.close()
            decoder = None
        return [_MpegStream(self, one, decoder), *(_MpegStream(self, stream, None) for stream in more)]

    def _flac(self, stream: _SndfileStream) -> list[_Stream]:
        """Return the streams of FLAC that is complete, truncated, of unknown length, or concatenated."""
        starts = flac.find_starts(self._handle, self._size)
        stream.close()  # its position in the file is lost
        if len(starts) > 1:
            ranges = pairwise([*starts, self._size])
            return [self._decoded([range(*pair)], keep_open=False) for pair in ranges]
        if stream.declared and not stream.has_last_frame():
            try:
                stream.frames = stream.count()
            except AudioError as error:  # damage is reported when it is reached
                if error.reason.startswith("truncated"):
                    raise
        return [stream]


def _decodes_exactly(stream: mpeg.MpegStream, sound: _ForwardReader) -> bool:
    """Whether libsndfile decodes the complete stream and nothing else."""
    same = len(stream.runs) == 1 and (stream.rate, stream.channels) == (sound.samplerate, sound.channels)
    if not same or stream.has_vbri:
        return False
    if stream.has_delay and not stream.is_truncated:
        return int(sound.frames) == stream.frames
    return int(sound.frames) >= stream.frames


def _is_mpeg_sync(head: bytes) -> bool:
    """Whether the first eleven bits are set and the layer bits are valid (in AAC they are 0)."""
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and bool(head[1] & 0x06)


def _message(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).strip().rstrip(".")
