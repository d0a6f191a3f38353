"""A recording has one digest whatever file holds it, and none where a decoder fails or hangs in it."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import soundfile

from pipeline.audio import audio_io
from pipeline.preprocessing.audio_hash import AudioHasher, hash_audio, hash_job
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Job
from tests.preprocessing.test_decode_workers import tone


def test_the_same_sound_has_one_digest_whatever_file_holds_it(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 21.0)
    soundfile.write(tmp_path / "b.flac", soundfile.read(path)[0], 24_000, subtype="PCM_24")
    soundfile.write(tmp_path / "c.wav", soundfile.read(tmp_path / "b.flac")[0], 24_000, subtype="PCM_24")
    assert hash_audio(str(tmp_path / "b.flac")) == hash_audio((tmp_path / "c.wav").read_bytes())
    assert hash_audio(str(tone(tmp_path / "d.wav", 20.0))) != hash_audio(str(path))
    (tmp_path / "bad.mp3").write_bytes(b"no sound at all")
    assert hash_audio(str(tmp_path / "bad.mp3")) is None


@pytest.mark.parametrize("readers", [0, 4])
def test_a_reader_finds_the_same(tmp_path: Path, readers: int) -> None:
    path = tone(tmp_path / "a.wav", 11.0)
    whole = path.read_bytes() * 2  # more than a pipe holds
    with closing(AudioHasher(readers, 60)) as digest:
        assert digest(str(path)) == digest(whole[: len(whole) // 2]) == hash_audio(str(path))
        assert digest(b"no sound at all") is None
        with pytest.raises(OSError, match="No such file"):  # so that nothing is remembered of it
            digest(str(tmp_path / "gone.wav"))


def stuck(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """As a decoder that never comes back from one file."""
    real = audio_io._open
    audio_io._open = lambda source, keep: time.sleep(600) if "stuck" in str(source) else real(source, keep)  # type: ignore[assignment]
    return hash_job(job, how)


def test_a_recording_in_which_a_decoder_hangs_has_none(tmp_path: Path) -> None:
    """The next one has its own again."""
    path = tone(tmp_path / "a.wav")
    with closing(AudioHasher(1, 0.5, stuck)) as digest:
        assert digest(str(tone(tmp_path / "stuck.wav"))) is None
        assert digest(str(path)) == hash_audio(str(path))
