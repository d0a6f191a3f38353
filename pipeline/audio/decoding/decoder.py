"""An open sound file: the streams in it, how long they really are, and their frames as blocks.

libsndfile decodes. What it does not see is done here: containers whose header disagrees with the bytes, lengths that
are only estimated, several streams in one file, broken MPEG frames, FLAC of unknown length. One rule for all formats:
a file with less sound than its header declares is truncated (an error, unless `keep_truncated`); one with more is read
to its end.

Blocks are [S] of one channel, else [S, 2]: the mean of the channels, and the first one.

Letters: S samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from pipeline.audio import amplitude
from pipeline.audio.decoding import chunks, flac, formats, mpeg, ogg
from pipeline.audio.decoding.splice import Handle, Stretch, splice
from pipeline.common.errors import InputError
from pipeline.common.sound_files import unsupported

BLOCK = 1 << 16  # source frames decoded at a time, fewer of many channels
CHANNELS = 8  # of which a block holds so many frames
RATES = range(1_000, 1_000_000)  # a header that says otherwise is broken
INEXACT = {"MP3", "OGG"}  # formats whose decoders do not land on the same samples after a seek
LAG = 0.1  # seconds by which the sound of these may be shorter than declared
UNKNOWN = 1 << 62  # frames: libsndfile says 2**63-1 where the header does not say it
DECLARED = "that its header declares"
PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # subtypes of which bytes tell the length


class AudioError(InputError):
    """A sound file that cannot be used. reason: what is wrong, first a word of its kind.

    Kinds: missing, empty, truncated, damaged, "not audio", "unsupported format", "not finite", and of `amplitude`.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class _Sound(soundfile.SoundFile):
    """Read from front to back: without the seek after each block, which fails where the length is unknown."""

    def seekable(self) -> bool:
        return False

    def block(self, size: int) -> tuple[np.ndarray, soundfile.LibsndfileError | None]:
        """Up to `size` frames, fewer of many channels: [S, channels], and the error that stopped the decoder then."""
        size = size * CHANNELS // max(CHANNELS, self.channels)
        block = np.full((size, self.channels), np.nan, np.float32)
        try:
            return self.read(out=block), None
        except soundfile.LibsndfileError as error:
            good = ~np.isnan(block[:, 0])
            return block[: size if good.all() else int(good.argmin())], error


class _Stream(Protocol):
    """A stream of sound. frames: per channel; None where only decoding can tell."""

    rate: int
    channels: int
    frames: int | None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Frames from `first` on: float32 [S] or [S, 2], S up to BLOCK."""
        ...

    def close(self) -> None:
        """Close the decoder; `blocks` opens another."""
        ...


class _Decoded:
    """A stream that libsndfile reads. stretches: where in the file it is; None for all of it."""

    def __init__(self, file: File, stretches: list[Stretch] | None = None) -> None:
        self._file, self._stretches = file, stretches
        sound = file.sound(stretches)
        self._sound: _Sound | None = sound
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
        with self._file.sound(self._stretches) as sound:
            try:
                sound.seek(self.declared - 1)
                return len(sound.read(1)) == 1
            except soundfile.LibsndfileError:
                return False

    def count(self) -> int:
        """Frames that can be decoded. Raises AudioError as `blocks`."""
        return sum(map(len, self.blocks(0)))

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """See `_Stream`. Raises AudioError where the file is damaged or truncated, behind the blocks before that."""
        sound, self._sound = self._sound or self._file.sound(self._stretches), None
        done, error = first, None
        with sound:
            try:
                sound.seek(first) if first else None
            except soundfile.LibsndfileError as broken:
                error = broken
            while error is None:
                block, error = sound.block(BLOCK)
                done += len(block)
                if not len(block):
                    break
                yield amplitude.mixed(block)
        if error is not None:
            if self.format != "FLAC" or self._file.bytes_left():
                raise AudioError(self._file.name, f"damaged at {done / self.rate:.1f} s: {_plain(error)}")
            if self.declared is None:
                self._file.refuse_truncated(f"it ends within a frame, at {done / self.rate:.1f} s")
        lag = LAG * self.rate if self.format in INEXACT else 0
        if self.declared is not None and done < self.declared - lag:
            self._file.refuse_truncated(f"it holds {done} of the {self.declared} frames {DECLARED}")


class _Mpeg:
    """A stream of MPEG frames. sound: libsndfile's decoder of the file, where it sees just this stream."""

    def __init__(self, file: File, stream: mpeg.Stream, sound: _Sound | None) -> None:
        self._file, self._stream, self._sound = file, stream, sound
        self.rate, self.channels = stream.rate, stream.channels
        self.frames: int | None = stream.frames

    def close(self) -> None:
        """See `_Stream`."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """See `_Stream`. MPEG frames that cannot be decoded are silent; raises AudioError where none can be."""
        stream = self._stream
        begin, end = stream.skip + first, stream.skip + stream.frames  # from the first MPEG frame's first sample on
        at = stream.skip if self._sound is not None else 0  # libsndfile leaves out what is to be skipped
        number, decoded = 0, False
        while at < end:
            for wav in self._decode_from(number, end - at):
                decoded = True
                if len(cut := wav[max(0, begin - at) : end - at]):
                    yield cut
                at += len(wav)
                if at >= end:
                    break
            else:  # the MPEG frame that `at` is in cannot be decoded
                number = at // stream.samples + 1
                lost = np.zeros(number * stream.samples - at, np.float32)
                if len(cut := lost[max(0, begin - at) : end - at]):
                    yield cut
                at += len(lost)
        if not decoded and stream.frames:
            raise AudioError(self._file.name, "damaged: no MPEG frame in it can be decoded")

    def _decode_from(self, number: int, left: int) -> Iterator[np.ndarray]:
        """Samples that can be decoded from an MPEG frame on, at most `left`."""
        sound, self._sound = self._sound, None
        try:
            sound = sound or self._file.sound(self._stream.stretches(number), self._stream.size)
        except soundfile.LibsndfileError:
            return
        with sound:
            error = None
            while error is None and left:
                block, error = sound.block(min(BLOCK, left))
                left -= len(block)
                if not len(block):
                    return
                yield amplitude.mixed(block)


class File:
    """An open sound file.

    Attributes:
        streams: of sound, one behind the other; most files have one.
        rate, channels: of the first stream.
        format: the container or codec, as libsndfile names it.
        truncation: how it holds less sound than its header declares; empty where it does not.
    """

    def __init__(self, name: str, handle: Handle, keep_truncated: bool = False) -> None:
        self.name, self._handle, self._keep = name, handle, keep_truncated
        self.truncation = ""
        self._size = handle.seek(0, io.SEEK_END)
        if self._size == 0:
            raise AudioError(name, "empty: the file has no bytes")
        self.format = ""
        self.streams: list[_Stream] = []
        try:
            self.streams = self._containers() or self._ogg() or self._others()
        except chunks.TooManyChunksError:
            raise AudioError(name, f"damaged: {chunks.CHUNKS} chunks and no sound in them") from None
        self.rate, self.channels = self.streams[0].rate, self.streams[0].channels
        for stream in self.streams:
            if stream.rate not in RATES:
                raise AudioError(name, f"damaged: the header says {stream.rate} Hz")

    @property
    def seekable_frames(self) -> int:
        """Frames per channel among which any can be decoded first; 0 where it must be decoded from its beginning."""
        one = len(self.streams) == 1 and self.format not in INEXACT
        return self.streams[0].frames or 0 if one else 0

    def count(self) -> int:
        """Frames per channel, at the first stream's rate. Decodes the file where no header says it."""
        total = 0
        for stream in self.streams:
            frames = sum(map(len, stream.blocks(0))) if stream.frames is None else stream.frames
            total += round(frames * self.rate / stream.rate)
        return total

    def runs(self, first: int) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        """(rate, blocks of frames) for each stretch of one rate, from frame `first` on.

        Raises AudioError where the file is damaged or truncated, behind the blocks before that.
        """
        for rate, streams in groupby(self.streams, key=lambda stream: stream.rate):
            yield rate, chain.from_iterable(stream.blocks(first) for stream in streams)

    def close(self) -> None:
        """Close what decodes."""
        for stream in self.streams:
            stream.close()

    def sound(self, stretches: list[Stretch] | None, extra: int = 0) -> _Sound:
        """libsndfile's decoder of the file, or of stretches of it. Raises LibsndfileError."""
        if stretches is not None:
            return _Sound(splice(self._handle, stretches, extra))
        self._handle.seek(0)
        try:
            return _Sound(self._handle.fileno(), closefd=False)  # a path would let soundfile judge by the extension
        except io.UnsupportedOperation:
            return _Sound(self._handle)

    def bytes_left(self) -> int:
        """Bytes that the decoder has not read yet."""
        return max(0, self._size - self._handle.tell())

    def refuse_truncated(self, what: str) -> None:
        """Note that the file is truncated. Raises AudioError unless such files are kept."""
        self.truncation = f"truncated: {what}"
        if not self._keep:
            raise AudioError(self.name, self.truncation)

    def _decoded(self, stretches: list[Stretch] | None, keep_open: bool = True) -> _Decoded:
        try:
            stream = _Decoded(self, stretches)
        except soundfile.LibsndfileError as error:
            raise self._not_audio(error) from None
        self.format = self.format or stream.format
        if not keep_open:
            stream.close()
        return stream

    def _not_audio(self, error: soundfile.LibsndfileError) -> AudioError:
        """Why libsndfile cannot open the file: a format that is named, or no sound."""
        self._handle.seek(0)
        if name := formats.name_format(self._handle.read(formats.HEAD) or b""):
            return AudioError(self.name, unsupported(name, Path(self.name).suffix))
        return AudioError(self.name, f"not audio: {_plain(error)}")

    def _containers(self) -> list[_Stream]:
        """WAV, AIFF and others whose headers declare how many bytes of sound there are."""
        streams: list[_Stream] = []
        found = chunks.sounds(self._handle, self._size)
        for sound in found:
            if sound.is_truncated:
                self.refuse_truncated(f"it holds {sound.present} of the {sound.declared} bytes of sound {DECLARED}")
            if sound.agrees():
                stretches: list[Stretch] | None = [range(sound.begin, sound.end)] if len(found) > 1 else None
            else:
                try:
                    stretches = sound.rewritten(self._handle)
                except OverflowError:
                    raise AudioError(
                        self.name, "damaged: its header cannot declare as much sound as it holds"
                    ) from None
            stream = self._decoded(stretches, keep_open=len(found) == 1)
            if stream.subtype.startswith("MPEG"):
                stream.close()
                streams += self._mpeg(sound.start, sound.start + sound.present, None)
                continue
            if not stream.subtype.startswith(PLAIN):
                stream.frames = None
            streams.append(stream)
        return streams

    def _ogg(self) -> list[_Stream]:
        self._handle.seek(0)
        if self._handle.read(4) != b"OggS":
            return []
        found = ogg.streams(self._handle, self._size)
        if found and found[-1].is_cut:
            self.refuse_truncated("it ends within a page")
        whole = len(found) == 1 and found[0].codec != "FLAC"
        return [self._decoded(None if whole else stream.stretches(), keep_open=whole) for stream in found]

    def _others(self) -> list[_Stream]:
        self._handle.seek(0)
        head = self._handle.read(4) or b""
        try:
            sound = self.sound(None)
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

    def _mpeg(self, start: int, stop: int, sound: _Sound | None) -> list[_Stream]:
        """sound: libsndfile's decoder of the file, which sees the first stream, and an estimate of its length."""
        self.format = "MP3"
        position = self._handle.tell()  # the decoder's, too
        found = mpeg.streams(self._handle, start, stop)
        self._handle.seek(position)
        if not found:
            raise AudioError(self.name, "not audio: no MPEG frame is in it")
        for stream in found:
            if stream.is_truncated:
                there, declared = len(stream.offsets), stream.declared
                self.refuse_truncated(f"it holds {there} of the {declared} MPEG frames {DECLARED}")
        (one, *more), sees = found, sound
        if sound is not None and (more or not _is_seen(one, sound)):
            sound.close()
            sees = None
        return [_Mpeg(self, one, sees), *(_Mpeg(self, stream, None) for stream in more)]

    def _flac(self, stream: _Decoded) -> list[_Stream]:
        """FLAC that is whole, truncated, of unknown length, or several files in one."""
        starts = flac.starts(self._handle, self._size)
        stream.close()  # its position in the file is lost
        if len(starts) > 1:
            ranges = pairwise([*starts, self._size])
            return [self._decoded([range(*pair)], keep_open=False) for pair in ranges]
        if stream.declared and not stream.has_last_frame():
            try:
                stream.frames = stream.count()
            except AudioError as error:  # damage is told when it is reached
                if error.reason.startswith("truncated"):
                    raise
        return [stream]


def _is_seen(stream: mpeg.Stream, sound: _Sound) -> bool:
    """Whether libsndfile decodes all of a stream, and nothing else."""
    same = len(stream.runs) == 1 and (stream.rate, stream.channels) == (sound.samplerate, sound.channels)
    if not same or stream.has_vbri:
        return False
    if stream.has_delay and not stream.is_truncated:
        return sound.frames == stream.frames
    return sound.frames >= stream.frames


def _is_mpeg_sync(head: bytes) -> bool:
    """Eleven bits set, and a layer (AAC has none)."""
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and bool(head[1] & 0x06)


def _plain(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".")
