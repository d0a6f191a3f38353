"""Sounds heard while they are made: each grows as a wav file that a browser plays as it comes.

Letters: B clips, K codebooks, T frames, S samples.
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

from pipeline.audio.codecs.base import Codec

KEPT = 32  # sounds that can be heard again
PAUSE = 0.05  # seconds between two looks at a sound that is being made


class AudioStream:
    """One sound of at most so many samples: who comes late hears it from its beginning."""

    def __init__(self, samples: int, rate: int) -> None:
        self._parts, self._left, self._ended = [wav_header(samples, rate)], samples, False

    def put(self, wav: np.ndarray) -> None:
        """Go on with [S]; what is beyond the length that was told is left out."""
        wav = wav[: self._left]
        self._left -= len(wav)
        self._parts.append((wav.clip(-1, 1) * 32_767).astype("<i2").tobytes())

    def end(self) -> None:
        """No more will come."""
        self._ended = True

    async def listen(self) -> AsyncIterator[bytes]:
        """The file from its beginning, as it grows."""
        at = 0
        while True:
            if at < len(self._parts):
                yield self._parts[at]
                at += 1
            elif self._ended:
                return
            else:
                await asyncio.sleep(PAUSE)


class AudioStreamRegistry:
    """The last sounds that were begun, each by a name that cannot be guessed."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, AudioStream] = OrderedDict()

    def begin(self, samples: int, rate: int) -> tuple[str, AudioStream]:
        """A new channel and its name."""
        name, channel = secrets.token_urlsafe(16), AudioStream(samples, rate)
        self._open[name] = channel
        while len(self._open) > KEPT:
            self._open.popitem(last=False)
        return name, channel

    def find(self, name: str) -> AudioStream | None:
        """None where there is none of that name (any more)."""
        return self._open.get(name)


@contextmanager
def stream_audio(channel: AudioStream, codec: Codec, frames: int, ends: bool) -> Iterator[Callable[[Tensor], None]]:
    """Takes codes [B, K, t] while they are made, and puts the first clip's sound, of so many frames, on a channel.

    ends: whether clips may end early; then frames of zeros behind a clip's end are no sound.
    """
    decoding, left = codec.streaming_decoder(), frames

    def take(codes: Tensor) -> None:
        nonlocal left
        first = codes[:1, :, :left]  # behind them come those of the next batch
        left -= first.shape[2]
        if ends:
            sounding = first[0].amax(0).nonzero()
            first = first[:, :, : int(sounding[-1]) + 1 if len(sounding) else 0]
        if first.shape[2]:
            channel.put(decoding.push(first)[0, 0].cpu().numpy())

    try:
        yield take
        channel.put(decoding.flush()[0, 0].cpu().numpy())
    finally:
        channel.end()


def wav_header(samples: int, rate: int) -> bytes:
    """Of a wav file, mono, 16 bits."""
    size = 2 * samples
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + form + b"data" + struct.pack("<I", size)
