"""Reading and writing audio files: all formats give the same samples; broken files are errors with a reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import audio_io
from pipeline.audio.audio_io import AudioError
from tests.helpers.preprocess_runs import ROOT

RATE = 24_000


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    """A decaying tone with a little noise: float32 [S]."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=len(t)) * 0.01
    return (0.5 * np.exp(-t) * np.sin(2 * np.pi * hz * t) + noise).astype(np.float32)


def save(path: Path, wav: np.ndarray, rate: int, **how: str) -> Path:
    soundfile.write(path, wav, rate, **how)
    return path


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def reason(source: audio_io.Source) -> str:
    with pytest.raises(AudioError) as caught:
        audio_io.read(source, rate=24_000)
    assert caught.value.name in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("rate", "how"),
    [
        (16_000, {"format": "WAV", "subtype": "PCM_16"}),
        (44_100, {"format": "WAV", "subtype": "PCM_U8"}),
        (48_000, {"format": "WAV", "subtype": "PCM_24"}),
        (24_000, {"format": "WAV", "subtype": "FLOAT"}),
        (192_000, {"format": "WAV", "subtype": "DOUBLE"}),
        (44_100, {"format": "FLAC", "subtype": "PCM_24"}),
        (44_100, {"format": "MP3"}),
        (44_100, {"format": "OGG", "subtype": "VORBIS"}),
        (48_000, {"format": "OGG", "subtype": "OPUS"}),
        (22_050, {"format": "AIFF", "subtype": "PCM_16"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["wav", "raw", "txt", ""])
def test_format_is_detected_from_content(tmp_path: Path, rate: int, how: dict, suffix: str) -> None:
    stereo = np.stack([tone(2, rate), 0.5 * tone(2, rate)], axis=1)
    path = save(tmp_path / f"a.{suffix}", stereo, rate, **how)
    wav = audio_io.read(path, rate=24_000)
    assert wav.dtype == np.float32
    assert wav.shape == (2 * RATE,)
    expected = soxr.resample(stereo.mean(axis=1), rate, RATE, "HQ")
    assert cosine(wav, expected) > 0.99
    result = audio_io.info(path)
    assert (result.rate, result.channels, result.seconds) == (rate, 2, 2.0)
    np.testing.assert_array_equal(audio_io.read(path.read_bytes(), rate=24_000), wav)
    np.testing.assert_array_equal(audio_io.read(io.BytesIO(path.read_bytes()), rate=24_000), wav)


def test_16_khz_is_resampled_once_to_24_khz(tmp_path: Path) -> None:
    """64,000 samples at 16 kHz (four seconds) are 96,000 at 24 kHz, or 300 codec frames."""
    wav = tone(4, 16_000)
    path = save(tmp_path / "a.wav", wav, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(audio_io.read(path, rate=24_000), soxr.resample(wav, 16_000, RATE, "HQ"))
    assert len(audio_io.read(path, rate=24_000)) == 96_000


@pytest.mark.parametrize(
    ("rate", "format"), [(16_000, "WAV"), (44_100, "FLAC"), (44_100, "OGG"), (44_100, "MP3"), (RATE, "WAV")]
)
def test_segment_equals_segment_of_complete_file(tmp_path: Path, rate: int, format: str) -> None:
    path = save(tmp_path / "a", tone(7, rate), rate, format=format)
    whole = audio_io.read(path, rate=24_000)
    for start, duration in [(0.0, 1.0), (0.5, 2.0), (3.21987, 1.5), (5.9, 1.1)]:
        first = round(start * RATE)
        cut = audio_io.read(path, start=start, duration=duration, rate=24_000)
        assert len(cut) == round(duration * RATE)
        np.testing.assert_allclose(cut, whole[first : first + len(cut)], atol=1e-6)  # soxr's HQ computes in float32
    assert len(audio_io.read(path, start=6.5, duration=4, rate=24_000)) == RATE // 2  # past the end of the file


@settings(max_examples=25)
@given(
    cuts=st.lists(st.tuples(st.floats(0, 5.9), st.floats(0.01, 3)), min_size=1, max_size=6),
    rate=st.sampled_from([16_000, 24_000, 44_100]),
)
def test_read_segments_equal_segments_of_complete_file(cuts: list[tuple[float, float]], rate: int) -> None:
    content = io.BytesIO()
    soundfile.write(content, tone(6, rate), rate, format="WAV", subtype="FLOAT")
    whole = audio_io.read(content.getvalue(), rate=24_000)
    cuts.sort()
    for (start, duration), wav in zip(cuts, audio_io.read_segments(content.getvalue(), cuts, rate=24_000), strict=True):
        np.testing.assert_array_equal(wav, whole[round(start * RATE) :][: round(duration * RATE)])


def test_read_segments_of_long_file_in_constant_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = save(tmp_path / "a.flac", np.tile(tone(10, RATE), 60), RATE)
    tracemalloc.start()
    count = sum(1 for _ in audio_io.read_segments(path, [(10.0 * i, 10.0) for i in range(60)], rate=24_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60
    assert peak < 15 * 10 * RATE * 4  # the complete file has 60 segments


def test_broken_mp3_frames_are_skipped(tmp_path: Path) -> None:
    """A track with 4,000 overwritten bytes loses that second only; a track may start within a frame."""
    early_and_late = np.concatenate([tone(10, 44_100, 440), tone(10, 44_100, 660)])
    whole = save(tmp_path / "a.mp3", early_and_late, 44_100).read_bytes()
    good = audio_io.read(whole, rate=24_000)
    for filler in (bytes(4000), np.random.default_rng(0).bytes(4000)):
        (tmp_path / "b.mp3").write_bytes(whole[:60_000] + filler + whole[64_000:])
        wav = audio_io.read(tmp_path / "b.mp3", rate=24_000)
        assert 17 * RATE < len(wav) < len(good)
        np.testing.assert_allclose(wav[: 2 * RATE], good[: 2 * RATE], atol=1e-3)
        late = np.abs(np.fft.rfft(wav[-4 * RATE : -RATE]))
        assert late.argmax() / 3 == pytest.approx(660, abs=1)  # the audio after the gap is present
    (tmp_path / "c.mp3").write_bytes(whole[1000:])
    assert abs(len(audio_io.read(tmp_path / "c.mp3", rate=24_000)) - len(good)) < RATE


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_shorter_than_declared_is_truncated(tmp_path: Path, subtype: str) -> None:
    content = save(tmp_path / "a.wav", tone(2, RATE), RATE, subtype=subtype).read_bytes()
    for share in (0.5, 0.99):
        (tmp_path / "b.wav").write_bytes(content[: int(len(content) * share)])
        assert reason(tmp_path / "b.wav").startswith("truncated")
        with pytest.raises(AudioError, match="truncated"):
            audio_io.info(tmp_path / "b.wav")
        with pytest.raises(AudioError, match="truncated"):
            list(audio_io.read_segments(tmp_path / "b.wav", [(0, 0.1)], rate=24_000))


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFEFFE, 0x80000000], ids=hex)
def test_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    content = bytearray(save(tmp_path / "a.wav", tone(1, RATE), RATE, subtype="PCM_16").read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", size)
    assert len(audio_io.read(bytes(content), rate=24_000)) == RATE


def test_truncated_or_damaged_flac_is_an_error(tmp_path: Path) -> None:
    content = save(tmp_path / "a.flac", tone(5, RATE), RATE).read_bytes()
    (tmp_path / "b.flac").write_bytes(content[: len(content) // 2])
    assert reason(tmp_path / "b.flac").split()[0] in ("damaged", "truncated:")
    (tmp_path / "c.flac").write_bytes(content[:20_000] + bytes(4000) + content[24_000:])
    assert reason(tmp_path / "c.flac").startswith("damaged")


def test_files_without_audio_are_errors_with_a_reason(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert reason(tmp_path / "empty.wav").startswith("empty")
    assert reason(save(tmp_path / "none.wav", np.zeros(0), RATE)).startswith("empty")
    for name, content in {
        "text.wav": b"no sound at all\n" * 500,
        "image.wav": b"\x89PNG\r\n\x1a\n" + random.bytes(5000),
        "photo.mp3": b"\xff\xd8\xff\xe0" + random.bytes(50_000),
        "text.mp3": b"no sound at all\n" * 500,
        "random.flac": random.bytes(50_000),
        "zeros.mp3": bytes(50_000),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name).startswith("not audio"), name
    assert reason(tmp_path / "gone.wav").startswith("missing")
    assert reason(tmp_path).startswith("missing")
    with pytest.raises(AudioError, match="empty: there is no sound from 9 s on"):
        audio_io.read(save(tmp_path / "short.wav", tone(1, RATE), RATE), start=9, rate=24_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_are_errors(tmp_path: Path, value: float) -> None:
    wav = tone(1, 16_000)
    wav[500] = value
    assert reason(save(tmp_path / "a.wav", wav, 16_000, subtype="FLOAT")).startswith("not finite")


def test_silence_is_below_minus_80_dbfs() -> None:
    assert audio_io.is_silent(np.zeros(RATE, np.float32))
    assert audio_io.is_silent(np.full(RATE, 0.25, np.float32))
    assert audio_io.is_silent(np.sign(tone(1, RATE)) / 32768)
    assert not audio_io.is_silent(1e-3 * tone(1, RATE))


def test_written_files_are_read_back(tmp_path: Path) -> None:
    wav = tone(1, RATE)
    for name, error in [("a.wav", 4e-5), ("sub/b.flac", 4e-5)]:
        audio_io.write(tmp_path / name, wav, RATE)
        np.testing.assert_allclose(audio_io.read(tmp_path / name, rate=24_000), wav, atol=error)
    audio_io.write(tmp_path / "loud.wav", 4 * wav, RATE)
    assert np.abs(audio_io.read(tmp_path / "loud.wav", rate=24_000)).max() <= 1
    with pytest.raises(audio_io.InputError, match="is not a format"):
        audio_io.write(tmp_path / "a.xyz", wav, RATE)
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", "sub", "loud.wav"}


def test_long_files_are_written_in_every_format(tmp_path: Path) -> None:
    """libsndfile's Vorbis overflows the stack if one call gets minutes of audio: the process crashes silently."""
    script = (
        "import numpy as np; from pipeline.audio import audio_io; audio_io.write('a.ogg', np.zeros(3_000_000), 24_000)"
    )
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True
    )
    assert audio_io.info(tmp_path / "a.ogg").frames == 3_000_000
    wav = tone(10, RATE)
    audio_io.write(tmp_path / "a.flac", wav, RATE)
    whole = io.BytesIO()
    soundfile.write(whole, wav, RATE, format="FLAC")
    assert (tmp_path / "a.flac").read_bytes() == whole.getvalue(), "as if written in one call"


def test_headerless_format_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(audio_io.InputError, match="is not a format"):
        audio_io.write(tmp_path / "a.raw", tone(1, RATE), RATE)


def test_memory_is_independent_of_channels(tmp_path: Path) -> None:
    import tracemalloc

    wav = np.repeat(tone(4, 8_000)[:, None], 512, axis=1)
    path = save(tmp_path / "a.wav", wav, 8_000, subtype="FLOAT")
    expected = audio_io.read(save(tmp_path / "b.wav", wav[:, 0], 8_000, subtype="FLOAT"), rate=24_000)
    tracemalloc.start()
    result = audio_io.read(path, rate=24_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert peak < 20 << 20  # 65,536 frames of these channels are 128 MiB


def test_audio_before_a_segment_is_dropped(tmp_path: Path) -> None:
    import tracemalloc

    path = save(tmp_path / "a.mp3", np.tile(tone(10, RATE), 30), RATE)
    tracemalloc.start()
    result = audio_io.read(path, start=290.0, duration=1.0, rate=24_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result) == RATE and peak < 60 * RATE * 4


def test_pipes_and_devices_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    assert reason(tmp_path / "a.wav").startswith("not audio: it is a pipe or a device")
    assert reason("/dev/zero").startswith("not audio: it is a pipe or a device")


def test_wav_with_too_many_chunks_fails_fast(tmp_path: Path) -> None:
    content = b"RIFF\xff\xff\xff\xffWAVE" + bytes(100 << 20)
    assert reason(content).startswith("damaged: 10000 chunks")


def test_mp3_with_only_a_tag_is_truncated(tmp_path: Path) -> None:
    stereo = np.repeat(tone(0.25, 44_100)[:, None], 2, axis=1)
    whole = save(tmp_path / "a.mp3", stereo, 44_100, subtype="MPEG_LAYER_III").read_bytes()
    assert reason(whole[:417] + whole[:30] + bytes(1600)).startswith("truncated: it holds 1 of the 11 MPEG frames")


def test_wav_larger_than_4_gib_is_read_to_its_end(tmp_path: Path) -> None:
    """Its header declares 20 s; the file is sparse, with a tone at the end."""
    path = save(tmp_path / "a.wav", np.zeros(20 * RATE), RATE, subtype="PCM_16")
    wav = tone(2, RATE)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + (1 << 32))
        file.seek(-2 * len(wav), os.SEEK_END)
        file.write((wav * 32767).astype("<i2").tobytes())
    seconds = 20 + (1 << 32) / 2 / RATE
    assert audio_io.info(path).seconds == pytest.approx(seconds, abs=1e-3)
    np.testing.assert_allclose(audio_io.read(path, start=seconds - 1, rate=24_000), wav[RATE:], atol=1e-4)


def test_keep_truncated_reads_truncated_files(tmp_path: Path) -> None:
    wav = tone(4, RATE)
    for format, kind in {"WAV": {}, "AIFF": {}, "W64": {}, "FLAC": {}, "MP3": {}, "OGG": {}}.items():
        content = save(tmp_path / "a", wav, RATE, format=format, **kind).read_bytes()[
            : (tmp_path / "a").stat().st_size // 2
        ]
        assert reason(content).startswith("truncated"), format
        with pytest.raises(AudioError, match="truncated"):
            list(audio_io.read_segments(content, [(0, 0.1)], rate=24_000))
        there = audio_io.read(content, keep_truncated=True, rate=24_000)
        assert 1.2 * RATE < len(there) < 2.2 * RATE, format
        assert cosine(there, wav[: len(there)]) > 0.98, format
        assert audio_io.info(content, keep_truncated=True).frames == len(there), format


def test_length_of_vbr_mp3_without_tag_is_counted(tmp_path: Path) -> None:
    """It starts quietly, so the decoder's estimate from the first frames is far off."""
    wav = np.concatenate([tone(1, RATE) * 1e-3, *[tone(1, RATE)] * 5])
    content = io.BytesIO()
    with soundfile.SoundFile(
        content, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(wav)
    frames = content.getvalue()
    tagged = audio_io.info(frames)
    start = frames.index(b"\xff\xf3", frames.index(b"LAME"))
    assert audio_io.info(frames[start:]).seconds == pytest.approx(tagged.seconds, abs=0.1)
    assert len(audio_io.read(frames[start:], rate=24_000)) == audio_io.info(frames[start:]).frames
