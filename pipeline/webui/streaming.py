"""Stream sounds while they are generated: each is a growing wav file that a browser plays while it arrives.

Letters: B batch, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from pipeline.audio.codecs.base import Codec, to_array

MAX_STREAMS = 32  # newest streams that can still be played
POLL_SECONDS = 0.05  # time between two checks for new audio


class AudioStream:
    """One sound of at most `samples` samples. Every listener receives it from its beginning."""

    def __init__(self, samples: int, rate: int, channels: int) -> None:
        self._parts, self._left, self._ended = [wav_header(samples, rate, channels)], samples, False

    def put(self, wav: np.ndarray) -> None:
        """Append wav [S] or [S, 2]. Samples beyond the length in the wav header are dropped."""
        wav = wav[: self._left]
        self._left -= len(wav)
        self._parts.append((wav.clip(-1, 1) * 32_767).astype("<i2").tobytes())

    def end(self) -> None:
        """Mark the sound as complete."""
        self._ended = True

    async def listen(self) -> AsyncIterator[bytes]:
        """Yield the wav file from its beginning, until the sound is complete."""
        index = 0
        while True:
            if index < len(self._parts):
                yield self._parts[index]
                index += 1
            elif self._ended:
                return
            else:
                await asyncio.sleep(POLL_SECONDS)


class AudioStreamRegistry:
    """The newest streams, by names that cannot be guessed."""

    def __init__(self) -> None:
        self._streams: OrderedDict[str, AudioStream] = OrderedDict()

    def begin(self, samples: int, rate: int, channels: int) -> tuple[str, AudioStream]:
        """Open a stream, and return its name and the stream."""
        name, stream = secrets.token_urlsafe(16), AudioStream(samples, rate, channels)
        self._streams[name] = stream
        while len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
        return name, stream

    def find(self, name: str) -> AudioStream | None:
        """Return the stream of this name; None if it is unknown or was dropped."""
        return self._streams.get(name)


@contextmanager
def stream_audio(stream: AudioStream, codec: Codec, frames: int, ends: bool) -> Iterator[Callable[[Tensor], None]]:
    """Decode the first clip of a batch while it is generated, and append it to a stream.

    The stream is marked as complete at the end, also after an error.

    Args:
        stream: Receives the sound.
        codec: Decodes the codes.
        frames: Length of the clip. Later frames belong to the next batch and are ignored.
        ends: Whether clips may end early. Then frames of zeros after a clip's end are not decoded.

    Yields:
        A function that accepts the next codes [B, K, T].
    """
    decoder, left = codec.streaming_decoder(), frames

    def push(codes: Tensor) -> None:
        nonlocal left
        first = codes[:1, :, :left]
        left -= first.shape[2]
        if ends:
            nonzero_frames = first[0].amax(0).nonzero()
            first = first[:, :, : int(nonzero_frames[-1]) + 1 if len(nonzero_frames) else 0]
        if first.shape[2]:
            stream.put(to_array(decoder.push(first)[0]))

    try:
        yield push
        stream.put(to_array(decoder.flush()[0]))
    finally:
        stream.end()


def wav_header(samples: int, rate: int, channels: int) -> bytes:
    """Return the header of a wav file with 16 bits per sample."""
    size = 2 * channels * samples
    format_fields = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + format_fields + b"data" + struct.pack("<I", size)
