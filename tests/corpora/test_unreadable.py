"""Files without read permission are skipped or named in errors, and used once they are readable."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.corpora import Clip, load
from pipeline.preprocessing.audio_hash import MeasuredDurations
from tests.helpers.corpora import data, pack

NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of an unprivileged user, whose permissions the test assumes, since root may read everything."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture
def lock(home: Path) -> Callable[[Path], None]:
    """Removes all permissions of a file or folder of `home`; the first call changes to the unprivileged user."""

    def change_owner(path: Path) -> None:
        if os.geteuid() == 0:
            for path_below in [home, *home.rglob("*")]:
                os.chown(path_below, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        path.chmod(0)

    return change_owner


def listed(name: str, root: Path, *settings: str) -> tuple[list[Clip], dict[str, str]]:
    corpus = data(name, root, *settings).open(durations=MeasuredDurations(keep_truncated=False))
    clips = list(corpus.clips())
    return clips, {left.path.removeprefix(f"{root}/"): left.reason for left in corpus.skipped}


def test_unreadable_track_is_skipped_until_readable(
    jamendo_folder: Path, home: Path, lock: Callable[[Path], None]
) -> None:
    root = shutil.copytree(jamendo_folder, home / "jamendo")
    track = root / "00" / "565800.mp3"
    whole, _ = listed("jamendo", root)
    shutil.rmtree(home / "scan_cache")
    lock(track)
    clips, skipped = listed("jamendo", root)
    assert skipped == {"00/565800.mp3": "cannot be read: Permission denied"}
    assert clips == [clip for clip in whole if clip.path != str(track)]
    track.chmod(0o600)
    assert listed("jamendo", root) == (whole, {})


def test_unreadable_duration_is_not_cached(home: Path, lock: Callable[[Path], None]) -> None:
    sound = home / "in" / "a.wav"
    sound.parent.mkdir()
    soundfile.write(sound, [0.1] * 3000, 1000)
    cuts = ("data.segment_seconds=1",)
    lock(sound)
    assert [clip.duration for clip in listed("folder", sound.parent, *cuts)[0]] == [None]
    sound.chmod(0o600)
    assert [clip.duration for clip in listed("folder", sound.parent, *cuts)[0]] == [1.0] * 3


@pytest.mark.parametrize("name", ["raw_30s.tsv", ""])
def test_unreadable_jamendo_files_are_errors(
    jamendo_folder: Path, home: Path, lock: Callable[[Path], None], name: str
) -> None:
    root = shutil.copytree(jamendo_folder, home / "jamendo")
    lock(root / name)
    with pytest.raises(InputError, match=rf"jamendo/?{name} cannot be read \(Permission denied\)"):
        listed("jamendo", root)


@pytest.mark.parametrize("name", ["nsynth-train/examples.json", "nsynth-train/audio", "nsynth-train", ""])
def test_unreadable_nsynth_files_are_errors(
    nsynth_folder: Path, home: Path, lock: Callable[[Path], None], name: str
) -> None:
    root = shutil.copytree(nsynth_folder, home / "nsynth")
    lock(root / name)
    with pytest.raises(InputError, match=rf"nsynth/{name}.* cannot be read \(Permission denied\)"):
        listed("nsynth", root)


def test_unreadable_archive_is_an_error(nsynth_folder: Path, home: Path, lock: Callable[[Path], None]) -> None:
    folder = nsynth_folder / "nsynth-train"
    files = {str(path.relative_to(nsynth_folder)): path for path in sorted(folder.rglob("*.*"))}
    archive = pack(home / "nsynth-train.jsonwav.tar.gz", files)
    lock(archive)
    for _ in range(2):
        with pytest.raises(InputError, match=r"nsynth-train\.jsonwav\.tar\.gz cannot be read \(Permission denied\)"):
            load_all(home)
        archive.chmod(0o600)
        load_all(home)  # now it is cached
        archive.chmod(0)


def load_all(root: Path) -> None:
    for clip in load(listed("nsynth", root, f"data.scan_cache_dir={root}/scan_cache")[0]):
        assert clip.content
