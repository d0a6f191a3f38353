"""Hashes of recordings depend on the audio, not on the file; a recording that cannot be decoded has none."""

import time
from contextlib import closing
from pathlib import Path

import pytest
import soundfile

from pipeline.audio import audio_io
from pipeline.preprocessing.audio_hash import RecordingWorker, hash_audio
from tests.preprocessing.test_decode_workers import tone


def test_hash_depends_on_audio_not_on_file(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 21.0)
    soundfile.write(tmp_path / "b.flac", soundfile.read(path)[0], 24_000, subtype="PCM_24")
    soundfile.write(tmp_path / "c.wav", soundfile.read(tmp_path / "b.flac")[0], 24_000, subtype="PCM_24")
    assert hash_audio(str(tmp_path / "b.flac")) == hash_audio((tmp_path / "c.wav").read_bytes())
    assert hash_audio(str(tone(tmp_path / "d.wav", 20.0))) != hash_audio(str(path))
    (tmp_path / "bad.mp3").write_bytes(b"no sound at all")
    assert hash_audio(str(tmp_path / "bad.mp3")) is None


@pytest.mark.parametrize("decode_workers", [0, 4])
def test_hash_in_worker_matches_direct_hash(tmp_path: Path, decode_workers: int) -> None:
    path = tone(tmp_path / "a.wav", 11.0)
    whole = path.read_bytes() * 2  # more than a pipe holds
    with closing(RecordingWorker(hash_audio, decode_workers, 60)) as digest:
        assert digest(str(path)) == digest(whole[: len(whole) // 2]) == hash_audio(str(path))
        assert digest(b"no sound at all") is None
        with pytest.raises(OSError, match="No such file"):  # so that nothing is remembered of it
            digest(str(tmp_path / "gone.wav"))


def stuck(source: str | bytes) -> str | None:
    """A decoder that hangs in one file."""
    real = audio_io._open
    audio_io._open = lambda source, *rest: time.sleep(600) if "stuck" in str(source) else real(source, *rest)  # type: ignore[assignment]
    return hash_audio(source)


def test_hanging_decoder_gives_no_hash(tmp_path: Path) -> None:
    """The next recording has a hash again."""
    path = tone(tmp_path / "a.wav")
    with closing(RecordingWorker(stuck, 1, 0.5)) as digest:
        assert digest(str(tone(tmp_path / "stuck.wav"))) is None
        assert digest(str(path)) == hash_audio(str(path))
