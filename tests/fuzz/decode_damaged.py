"""Decode damaged audio files in a child process: `python -m tests.fuzz.decode_damaged FIRST LAST SEED NOTE`.

It prints failures on stdout, and writes the number of the current input to the file NOTE, in case it crashes.
"""

from __future__ import annotations

import gc
import io
import itertools
import random
import resource
import sys
import tempfile
import time
import traceback
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio import audio_io
from tests.helpers.damage import damaged

MEMORY = 2 << 30  # bytes of address space, of which Python and its libraries take a third
FORMATS = (  # format, subtype, rate, channels
    *("WAV PCM_16 16000 1", "WAV PCM_24 44100 2", "WAV FLOAT 24000 1", "WAV DOUBLE 8000 6"),
    *("WAV ULAW 8000 1", "WAV IMA_ADPCM 22050 1", "WAV MS_ADPCM 22050 2", "WAV GSM610 8000 1"),
    *("FLAC PCM_16 44100 2", "FLAC PCM_24 24000 1", "OGG VORBIS 44100 2", "OGG OPUS 48000 1"),
    *("MP3 MPEG_LAYER_III 44100 2", "MP3 MPEG_LAYER_III 16000 1", "AIFF PCM_16 22050 1", "AU PCM_16 16000 1"),
    *("CAF PCM_16 16000 1", "CAF ALAC_16 44100 2", "W64 PCM_16 16000 2", "RF64 PCM_16 16000 1"),
    *("VOC PCM_16 16000 1", "PAF PCM_16 16000 1", "SVX PCM_16 16000 1", "NIST PCM_16 16000 1"),
    *("IRCAM PCM_16 16000 1", "AVR PCM_16 16000 1", "SDS PCM_16 16000 1", "MAT4 PCM_16 16000 1"),
    *("MAT5 PCM_16 16000 1", "PVF PCM_16 16000 1", "HTK PCM_16 16000 1", "XI DPCM_16 16000 1"),
    *("WVE ALAW 8000 1", "MPC2K PCM_16 16000 1"),
)  # fmt: skip
MODERN = 19  # the first of them, which are common in corpora


@lru_cache
def whole(number: int) -> bytes:
    """A valid file of 0.25 s."""
    format, subtype, *counts = FORMATS[number].split()
    rate, channels = map(int, counts)
    wav = 0.3 * np.sin(2 * np.pi * 330 * np.arange(rate // 4) / rate)
    content = io.BytesIO()
    soundfile.write(content, np.repeat(wav[:, None], channels, 1), rate, subtype, format=format)
    return content.getvalue()


def sound(seed: int, number: int) -> bytes:
    """Input `number` of a run; three in four have common formats."""
    draw = random.Random(f"{seed}:{number}")
    pick = draw.randrange(MODERN if draw.random() < 0.75 else len(FORMATS))
    head = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) if draw.random() < 0.05 else b""
    return head + damaged(draw.getrandbits(60), [whole(pick), whole(pick), whole(draw.randrange(MODERN))])


def listen(content: bytes, path: Path) -> None:
    """Call every function that reads audio; anything except valid results and AudioError raises."""
    path.write_bytes(content)
    for read in (lambda: audio_io.info(path), lambda: audio_io.info(content)):
        try:
            info = read()
            assert info.channels > 0 and info.rate in audio_io.RATES and info.frames >= 0
        except audio_io.AudioError as error:
            assert "\n" not in str(error), str(error)
    for read in (
        lambda: [audio_io.read(path, duration=5.0, rate=24_000)],
        lambda: [audio_io.read(content, start=0.1, duration=0.05, rate=16_000)],
        lambda: [*itertools.islice(audio_io.read_segments(path, [(0.05 * i, 0.05) for i in range(4)], rate=24_000), 4)],
    ):
        try:
            for wav in read():
                assert wav.dtype == np.float32 and wav.ndim == 1 and 0 < len(wav) <= 120_000 and np.isfinite(wav).all()
        except audio_io.AudioError as error:
            assert "\n" not in str(error) and (str(path) in str(error) or "audio in memory" in str(error)), str(error)


def main(first: int, last: int, seed: int, note: Path) -> None:
    """Decode all inputs."""
    np.seterr(all="ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder, note.open("r+") as at:
        for number in range(first, last):
            at.seek(0)
            at.write(f"{number:12d}")
            at.flush()
            content, start = sound(seed, number), time.monotonic()
            try:
                listen(content, Path(folder) / ("a.mp3" if number % 7 == 0 else "a.wav"))
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                print(
                    f"{number}: {type(error).__name__}: {str(error)[:200]!r} at {where.filename}:{where.lineno}",
                    flush=True,
                )
                gc.collect()
            if time.monotonic() - start > 10:
                print(f"{number}: took {time.monotonic() - start:.0f} s", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
