"""Unsupported formats are detected from the content, whatever the file name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio import audio_io

AIFF_C = b"FORM\0\0\0\x40AIFCFVER\0\0\0\4\xa2\x80\x51\x40COMM\0\0\0\x18\0\1\0\0\0\0\0\x10" + b"\x40\x0e" + bytes(8)
WAV = b"RIFF\xff\xff\0\0WAVEfmt \x12\0\0\0"
HEADS = {
    "MPEG-4 (AAC or ALAC)": b"\0\0\0\x20ftypM4A \0\0\0\0",
    "Matroska or WebM": b"\x1aE\xdf\xa3\x01\0\0\0",
    "Windows Media (WMA)": b"0&\xb2u\x8ef\xcf\x11",
    "Monkey's Audio (APE)": b"MAC \x96\x0f\0\0",
    "WavPack": b"wvpk\x10\0\0\0",
    "AAC": b"\xff\xf1\x50\x80\x02\x1f",
    "AC-3": b"\x0b\x77\0\0",
    "Speex in Ogg": b"OggS" + bytes(24) + b"Speex   1.2",
    "WMA in WAV": WAV + b"\x61\x01\1\0",
    "'aac' in CAF": b"caff\0\1\0\0desc" + bytes(8) + bytes(8) + b"aac " + bytes(20),
    "'MAC3' in AIFF-C": AIFF_C + b"MAC3" + bytes(8),
}


@pytest.mark.parametrize("suffix", [".mp3", ".wav"])
@pytest.mark.parametrize("name", HEADS)
def test_unsupported_format_is_named_by_content(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"sound{suffix}"
    path.write_bytes(HEADS[name] + bytes(4000))
    with pytest.raises(audio_io.AudioError) as caught:
        audio_io.read(path, rate=24_000)
    assert caught.value.reason == (f"unsupported format: {name} is not read; convert it: ffmpeg -i IN{suffix} OUT.flac")


def test_supported_content_with_wrong_suffix_is_read(tmp_path: Path) -> None:
    """A FLAC named .m4a is a FLAC."""
    soundfile.write(tmp_path / "a.m4a", np.full(2_400, 0.1), 24_000, format="FLAC")
    assert len(audio_io.read(tmp_path / "a.m4a", rate=24_000)) == 2_400
