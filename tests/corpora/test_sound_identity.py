"""Files with the same audio are used once, or are all in one split."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.corpora.segments import assign_split
from pipeline.preprocessing.audio_hash import MeasuredDurations, hash_audio
from tests.helpers.corpora import data, tagged

THIRDS = ("data.valid=0.33", "data.test=0.33")


def listed(root: Path, *settings: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the split of every recording, and the reasons of skipped ones, by names below the root."""
    corpus = data("folder", root, *THIRDS, *settings).open(hash_audio, MeasuredDurations(keep_truncated=False))
    splits = {os.path.relpath(clip.path, root): clip.split for clip in corpus.clips()}
    return splits, {os.path.relpath(left.path, root): left.reason for left in corpus.skipped}


def music(number: int, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(number)
    wave = np.sin(np.cumsum(rng.uniform(0.02, 0.2, round(seconds * 24_000))))
    return (9_000 * wave).astype(np.int16)  # libsndfile rounds floats differently for FLAC and WAV


def write(path: Path, number: int, seconds: float = 1.0, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, music(number, seconds), 24_000, **options)
    return path


def retagged_flac(content: bytes) -> bytes:
    """A FLAC with an additional padding block after its first metadata block."""
    return content[:42] + b"\x01\x00\x01\x00" + bytes(256) + content[42:]


@pytest.fixture(scope="module")
def eight_of_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 recordings, each as wav, renamed copy, hard link, flac, aiff, retagged flac, mp3 and ogg."""
    root = tmp_path_factory.mktemp("copies") / "in"
    for number in range(10):
        wav = write(root / f"{number}.wav", number)
        shutil.copy(wav, root / f"copy of {number}.wav")
        (root / "links").mkdir(exist_ok=True)
        (root / "links" / f"{number * 7}.wav").hardlink_to(wav)
        flac = write(root / "archive" / f"take {number}.flac", number)
        (root / f"{number}-tagged.flac").write_bytes(retagged_flac(flac.read_bytes()))
        write(root / "mac" / f"{number:03d}.aiff", number)
        write(root / "phone" / f"{number}.mp3", number)
        write(root / f"{number}.ogg", number)
    return root


def source_of(name: str) -> int:
    number = int("".join(filter(str.isdigit, Path(name).stem)))
    return number // 7 if name.startswith("links/") else number


def test_files_with_the_same_audio_share_a_split(eight_of_each: Path) -> None:
    splits, skipped = listed(eight_of_each)
    assert len(splits) == 30 and len(skipped) == 50
    for number in range(10):
        ours = {name: split for name, split in splits.items() if source_of(name) == number}
        assert len(set(ours.values())) == 1, ours
        assert {Path(name).suffix for name in ours} >= {".mp3", ".ogg"}, "lossy versions are used"
        for name, reason in skipped.items():
            if source_of(name) == number:
                kept = reason.removeprefix("duplicate: the same audio as ")
                assert kept in ours and source_of(kept) == number
    assert set(splits.values()) == {"train", "valid", "test"}


def test_splits_are_the_same_in_a_second_run(eight_of_each: Path) -> None:
    splits, skipped = listed(eight_of_each)
    assert listed(eight_of_each, "data.segment_seconds=0.4") == (splits, skipped)
    corpus = data("folder", eight_of_each, *THIRDS).open(
        lambda source: pytest.fail(f"{source!r} is decoded again"), MeasuredDurations(keep_truncated=False)
    )
    assert {os.path.relpath(clip.path, eight_of_each): clip.split for clip in corpus.clips()} == splits


def test_folders_with_versions_share_a_split(tmp_path: Path) -> None:
    """With `split_by=folder` a subfolder shares a split, and so do two with the same recordings."""
    root = tmp_path / "in"
    for album in range(8):
        for track in range(2):
            write(root / "wav" / f"album {album}" / f"{album}-{track}.wav", 10 * album + track, 0.2)
            write(root / "mp3" / f"album {album}" / f"{album}-{track}.mp3", 10 * album + track, 0.2)
    splits, _ = listed(root, "data.split_by=folder")
    for album in range(8):
        assert len({split for name, split in splits.items() if f"album {album}/" in name}) == 1
    assert len(set(splits.values())) > 1


def test_split_without_duplicates_is_by_name(tmp_path: Path) -> None:
    """By a hash of each name; recordings with the same name or the same length only are not duplicates."""
    root = tmp_path / "in"
    for number in range(12):
        write(root / f"kit/{number}.wav", number, 0.3)
        write(root / f"kit/{number}.flac", 100 + number, 0.5)
        write(root / f"notes/n{number}.aiff", 200 + number, 0.3)
    splits, skipped = listed(root)
    assert not skipped and splits == {name: assign_split(name, 0, 0.33, 0.33) for name in splits} and len(splits) == 36


def test_retagged_empty_and_broken_files(tmp_path: Path) -> None:
    """A retagged mp3 or wav is a duplicate; files without audio are left to the decoder."""
    root = tmp_path / "in"
    mp3 = write(root / "a.mp3", 1)
    (root / "b.mp3").write_bytes(tagged(mp3.read_bytes(), "another title"))
    wav = write(root / "c.wav", 2).read_bytes()
    chunk = b"LIST" + (26).to_bytes(4, "little") + bytes(26)
    (root / "d.wav").write_bytes(wav[:4] + (len(wav) + 26).to_bytes(4, "little") + wav[8:12] + chunk + wav[12:])
    for name in ("e.wav", "f.wav", "g.flac"):
        (root / name).write_bytes(b"")
    (root / "h.flac").write_bytes(b"fLaC\x00")
    (root / "i.wav").write_bytes(b"RIFF\x10\x00\x00\x00WAVE")
    splits, skipped = listed(root)
    assert skipped == {"b.mp3": "duplicate: the same audio as a.mp3", "d.wav": "duplicate: the same audio as c.wav"}
    assert set(splits) == {"a.mp3", "c.wav", "e.wav", "f.wav", "g.flac", "h.flac", "i.wav"}


def test_duplicates_without_a_digest_need_equal_bytes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    shutil.copy(write(root / "a.wav", 1), root / "b.wav")
    write(root / "c.flac", 1)
    clips = data("folder", root).open().clips()
    assert [Path(clip.path).name for clip in clips] == ["a.wav", "c.flac"]
