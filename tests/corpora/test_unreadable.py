"""What this user may not read is set aside or refused by name, and found again once it may be read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.corpora import Clip, load, open_corpus
from tests.helpers.corpora import data, pack

NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test goes on: root may read everything."""
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
    """Takes a file or folder of `home` away from the user, whom the first call makes."""

    def take(path: Path) -> None:
        if os.geteuid() == 0:
            for place in [home, *home.rglob("*")]:
                os.chown(place, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        path.chmod(0)

    return take


def listed(name: str, root: Path, *settings: str) -> tuple[list[Clip], dict[str, str]]:
    corpus = open_corpus(data(name, root, *settings))
    clips = list(corpus.clips())
    return clips, {left.path.removeprefix(f"{root}/"): left.reason for left in corpus.skipped}


def test_a_track_is_set_aside_until_it_can_be_read(
    jamendo_folder: Path, home: Path, lock: Callable[[Path], None]
) -> None:
    root = shutil.copytree(jamendo_folder, home / "jamendo")
    track = root / "00" / "565800.mp3"
    whole, _ = listed("jamendo", root)
    shutil.rmtree(home / "scan_cache")
    lock(track)
    clips, aside = listed("jamendo", root)
    assert aside == {"00/565800.mp3": "cannot be read: Permission denied"}
    assert clips == [clip for clip in whole if clip.path != str(track)]
    track.chmod(0o600)
    assert listed("jamendo", root) == (whole, {})


def test_a_duration_that_could_not_be_read_is_not_remembered(home: Path, lock: Callable[[Path], None]) -> None:
    sound = home / "in" / "a.wav"
    sound.parent.mkdir()
    soundfile.write(sound, [0.1] * 3000, 1000)
    cuts = ("data.segment_seconds=1",)
    lock(sound)
    assert [clip.duration for clip in listed("folder", sound.parent, *cuts)[0]] == [None]
    sound.chmod(0o600)
    assert [clip.duration for clip in listed("folder", sound.parent, *cuts)[0]] == [1.0] * 3


@pytest.mark.parametrize("name", ["raw_30s.tsv", ""])
def test_jamendo_s_metadata_and_folder_are_named(
    jamendo_folder: Path, home: Path, lock: Callable[[Path], None], name: str
) -> None:
    root = shutil.copytree(jamendo_folder, home / "jamendo")
    lock(root / name)
    with pytest.raises(InputError, match=rf"jamendo/?{name} cannot be read \(Permission denied\)"):
        listed("jamendo", root)


@pytest.mark.parametrize("name", ["nsynth-train/examples.json", "nsynth-train/audio", "nsynth-train", ""])
def test_nsynth_s_index_and_folders_are_named(
    nsynth_folder: Path, home: Path, lock: Callable[[Path], None], name: str
) -> None:
    root = shutil.copytree(nsynth_folder, home / "nsynth")
    lock(root / name)
    with pytest.raises(InputError, match=rf"nsynth/{name}.* cannot be read \(Permission denied\)"):
        listed("nsynth", root)


def test_an_archive_is_named_when_it_is_listed_and_when_it_is_read(
    nsynth_folder: Path, home: Path, lock: Callable[[Path], None]
) -> None:
    folder = nsynth_folder / "nsynth-train"
    files = {str(path.relative_to(nsynth_folder)): path for path in sorted(folder.rglob("*.*"))}
    archive = pack(home / "nsynth-train.jsonwav.tar.gz", files)
    lock(archive)
    for _ in range(2):
        with pytest.raises(InputError, match=r"nsynth-train\.jsonwav\.tar\.gz cannot be read \(Permission denied\)"):
            load_all(home)
        archive.chmod(0o600)
        load_all(home)  # now it is in the listing
        archive.chmod(0)


def load_all(root: Path) -> None:
    for clip in load(listed("nsynth", root, f"data.scan_cache_dir={root}/scan_cache")[0]):
        assert clip.content
