"""A folder of audio files is listed completely and in order, each recording once and in one split."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.corpora import Corpus
from pipeline.corpora.scan_cache import cached_map
from pipeline.corpora.segments import assign_split, cut_segments
from pipeline.preprocessing.audio_hash import MeasuredDurations
from tests.helpers.corpora import data

DURATIONS = MeasuredDurations(keep_truncated=False)


def sound(path: Path, seconds: float = 0.5, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pitch = 200 + zlib.crc32(os.fsencode(path)) / 2**32 * 300  # each file has other audio
    tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * 16_000)) / 16_000)
    soundfile.write(path, tone, 16_000, **kind)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    for name in ("a.wav", "b/one.flac", "b/two.ogg", "b/c/three.mp3", "b.wav"):
        sound(root / name)
    return root


def folder(root: Path, *settings: str) -> Corpus:
    return data("folder", root, *settings).open(durations=DURATIONS)


def names(root: Path, *settings: str) -> list[str]:
    return [os.path.relpath(clip.path, root) for clip in folder(root, *settings).clips()]


def durations(folder: Path) -> list[Path]:
    """The cache files of durations, complete or temporary."""
    return [path for path in (folder / "scan_cache").iterdir() if ".seconds." in path.name]


def test_files_are_listed_in_order(root: Path) -> None:
    (root / "cover.jpg").write_bytes(b"no sound")
    sound(root / ".trash" / "old.wav")
    sound(root / ".hidden.wav")
    assert names(root) == ["a.wav", "b/c/three.mp3", "b/one.flac", "b/two.ogg", "b.wav"]
    corpus = folder(root)
    assert list(corpus.clips()) == list(corpus.clips())
    assert corpus.skipped == []


def test_unsupported_formats_are_reported(root: Path) -> None:
    """With the command that converts them; pictures, texts and a Mac's `._` files are ignored."""
    for name in ("x.m4a", "b/Y.WMA", "z.webm", "._a.wav", "b/._one.flac", "notes.txt", "cover.jpg"):
        (root / name).write_bytes(b"\0\5\x16\7")
    corpus = folder(root)
    assert len(list(corpus.clips())) == 5
    reasons = {os.path.relpath(left.path, root): left.reason for left in corpus.skipped}
    assert reasons.keys() == {"x.m4a", "b/Y.WMA", "z.webm"}
    assert reasons["x.m4a"] == ("unsupported format: .m4a is not read; convert it: ffmpeg -i IN.m4a OUT.flac")
    chosen = folder(root, "data.extensions=[WAV,.flac]")
    assert [os.path.relpath(clip.path, root) for clip in chosen.clips()] == ["a.wav", "b/one.flac", "b.wav"]
    assert chosen.skipped == []


def test_folder_of_unsupported_files_says_how_to_convert(tmp_path: Path) -> None:
    for name in ("a.m4a", "b.m4a", "c.ape"):
        (tmp_path / name).write_bytes(b"sound")
    with pytest.raises(
        InputError, match=r"it contains 2 \.m4a, 1 \.ape, which are not supported: .*ffmpeg -i IN\.m4a OUT\.flac"
    ):
        list(folder(tmp_path).clips())


@pytest.mark.parametrize(
    "name", ["two words.wav", "Größe Ω.wav", "line\nbreak.wav", "v1.2.final.wav", "x" * 200 + ".wav"]
)
def test_any_file_name_has_a_valid_key(root: Path, name: str) -> None:
    sound(root / name)
    clip = next(clip for clip in folder(root).clips() if Path(clip.path).name == name)
    assert re.fullmatch("[A-Za-z0-9_-]{1,80}", clip.key)
    assert soundfile.info(clip.path).duration == pytest.approx(0.5)


def test_non_unicode_name_is_listed(root: Path) -> None:
    shutil.move(sound(root / "cafe.wav"), os.fsencode(root) + b"/caf\xe9.wav")
    clips = list(folder(root).clips())
    assert os.fsencode(root) + b"/caf\xe9.wav" in {os.fsencode(clip.path) for clip in clips}


def test_similar_names_have_different_keys(root: Path) -> None:
    for name in ("loop 1.wav", "loop-1.wav", "loop_1.wav", "loop.1.wav", "loop 1.flac", "Loop 1.wav", "loop/1.wav"):
        sound(root / name)
    keys = [clip.key for clip in folder(root).clips()]
    assert len(set(keys)) == len(keys) == 12


def test_links_do_not_loop_or_repeat_recordings(root: Path, tmp_path: Path) -> None:
    outside = sound(tmp_path / "outside" / "far.wav").parent
    (outside / "up").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "b" / "c" / "back").symlink_to("..")
    (root / "again.wav").symlink_to("a.wav")
    (root / "far").symlink_to(outside)
    (root / "far too").symlink_to(outside)
    (root / "gone.wav").symlink_to("nowhere.wav")
    (root / "self.wav").symlink_to("self.wav")
    corpus = folder(root)
    listed = [os.path.relpath(clip.path, root) for clip in corpus.clips()]
    assert listed == ["a.wav", "b/c/three.mp3", "b/one.flac", "b/two.ogg", "b.wav", "far/far.wav"]
    reasons = {os.path.relpath(left.path, root): left.reason for left in corpus.skipped}
    for name in ("loop", "b/c/back", "again.wav", "far/up", "far too"):
        assert reasons.pop(name) == "a link to what is listed already"
    assert "link" in reasons.pop("gone.wav")
    assert set(reasons) == {"self.wav"}


def test_links_into_hidden_folders_are_followed(root: Path) -> None:
    """git-annex and DVC store large files in hidden folders."""
    sound(root / ".store" / "ab12.wav")
    (root / "kept.wav").symlink_to(".store/ab12.wav")
    (root / "kept twice.wav").symlink_to(".store/ab12.wav")
    assert "kept twice.wav" in names(root)
    assert "kept.wav" not in names(root)


def test_segments_are_contiguous_and_in_one_split(root: Path) -> None:
    sound(root / "long.flac", 5.3)
    settings = ("data.segment_seconds=1", "data.min_seconds=0.25", "data.valid=0.3", "data.test=0.3")
    clips = list(folder(root, *settings).clips())
    runs = [(path, list(run)) for path, run in groupby(clips, lambda clip: clip.path)]
    assert len(runs) == 6, "the segments of a recording are contiguous"
    for path, run in runs:
        assert len({clip.split for clip in run}) == 1
        cuts = [(clip.start, clip.duration) for clip in run]
        if path.endswith("long.flac"):
            assert cuts == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 0.3)]
        else:
            assert cuts == [(0, None)]
    assert len({clip.key for clip in clips}) == len(clips)


@given(st.floats(0.001, 600), st.floats(2, 60), st.floats(0.01, 2))
def test_segments_cover_the_recording(duration: float, length: float, shortest: float) -> None:
    cuts = cut_segments(duration, length, shortest)
    if len(cuts) == 1 and cuts[0] == (0.0, None):
        return
    starts, lengths = np.array(cuts, dtype=float).T
    assert starts[0] == 0
    np.testing.assert_allclose(starts[1:], (starts + lengths)[:-1], atol=1e-5)
    assert lengths.max() <= length
    assert -1e-5 <= duration - (starts + lengths)[-1] < shortest + 1e-5


def test_unreadable_header_gives_one_clip(root: Path) -> None:
    (root / "broken.wav").write_bytes(b"not a sound")
    (root / "empty.mp3").write_bytes(b"")
    clips = folder(root, "data.segment_seconds=0.1").clips()
    broken = [clip for clip in clips if Path(clip.path).name in {"broken.wav", "empty.mp3"}]
    assert [(clip.start, clip.duration) for clip in broken] == [(0, None), (0, None)]


def test_durations_are_cached_until_files_change(root: Path) -> None:
    class Counting(MeasuredDurations):
        def __call__(self, path: str) -> float | None:
            measured.append(path)
            return super().__call__(path)

    measured: list[str] = []
    settings, durations = data("folder", root, "data.segment_seconds=0.2"), Counting(keep_truncated=False)
    before = list(settings.open(durations=durations).clips())
    measured.clear()
    assert list(settings.open(durations=durations).clips()) == before
    assert measured == []
    sound(root / "b" / "one.flac", 0.9)
    sound(root / "new.wav")
    (root / "b.wav").unlink()
    after = list(settings.open(durations=durations).clips())
    assert len(measured) == 2, "the changed file and the new one"
    assert Counter(clip.path for clip in after)[f"{root}/b/one.flac"] == 4


def test_split_is_independent_of_other_recordings(root: Path) -> None:
    shares = ("data.valid=0.3", "data.test=0.3")
    before = {clip.path: clip.split for clip in folder(root, *shares).clips()}
    for number in range(40):
        sound(root / f"more-{number}.wav", 0.01)
    after = {clip.path: clip.split for clip in folder(root, *shares).clips()}
    assert {path: after[path] for path in before} == before
    assert set(after.values()) == {"train", "valid", "test"}


def test_split_by_folder(root: Path) -> None:
    for number in range(60):
        sound(root / f"album-{number // 6}" / f"{number}.wav", 0.01)
    settings = ("data.split_by=folder", "data.valid=0.3", "data.test=0.3")
    splits: dict[Path, set] = {}
    for clip in folder(root, *settings).clips():
        splits.setdefault(Path(clip.path).parent, set()).add(clip.split)
    assert all(len(of) == 1 for of in splits.values())
    assert len(set.union(*splits.values())) > 1


def test_split_shares_and_seed() -> None:
    def count(seed: int) -> Counter:
        return Counter(assign_split(str(n), seed, valid=0.1, test=0.2) for n in range(10_000))

    assert count(0)["valid"] == pytest.approx(1_000, abs=120)
    assert count(0)["test"] == pytest.approx(2_000, abs=160)
    assert count(0) != count(1)


@given(
    st.lists(st.tuples(st.text("ab/", min_size=1), st.integers(0, 1))),
    st.lists(st.tuples(st.text("ab/", min_size=1), st.integers(0, 1))),
)
def test_cached_map_computes_only_changed_items(tmp_path_factory, old: list, new: list) -> None:
    """A second run computes exactly the items whose stamp changed, wherever items were added or removed."""
    file = tmp_path_factory.mktemp("listing") / "rows.jsonl"

    def items(pairs: list) -> list[tuple[str, str]]:
        return sorted(((name, str(stamp)) for name, stamp in dict(pairs).items()), key=lambda pair: pair[0].split("/"))

    assert [value for *_, value in cached_map(file, items(old), str.upper)] == [name.upper() for name, _ in items(old)]
    sought: list[str] = []
    rows = list(cached_map(file, items(new), lambda name: sought.append(name) or name.upper()))
    assert rows == [(name, stamp, name.upper()) for name, stamp in items(new)]
    assert sought == [name for name, stamp in items(new) if (name, stamp) not in items(old)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.valid=0.6", "data.test=0.4"], r"data\.test=0\.4: expected less than 1 with data\.valid=0\.6"),
        (["data.segment_seconds=0"], r"data\.segment_seconds=0"),
        (["data.min_seconds=0"], r"data\.min_seconds=0"),
        (["data.split_by=mood"], "expected recording or folder"),
    ],
)
def test_settings_out_of_range_are_errors(root: Path, settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data("folder", root, *settings)


def test_missing_and_empty_folders_are_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root=.*absent is not a folder.*\.wav.*data\.root=DIR"):
        folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.root=.*empty contains no clips"):
        list(folder(tmp_path / "empty").clips())


def test_unwritable_scan_cache_names_its_setting(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = data("folder", root, "data.segment_seconds=1", f"data.scan_cache_dir={tmp_path / 'file' / 'below'}")
    with pytest.raises(InputError, match=r"data\.scan_cache_dir=.*cannot be written"):
        list(settings.open(durations=DURATIONS).clips())


def test_stale_temporary_files_are_deleted(root: Path, tmp_path: Path) -> None:
    settings = data("folder", root, "data.segment_seconds=1")
    plan = settings.open(durations=DURATIONS).clips()
    next(plan)
    (unfinished,) = durations(tmp_path)
    assert unfinished.name.startswith("."), "a cache file is renamed when it is complete"
    left = unfinished.with_name(f"{unfinished.name}0")
    left.write_text("incomplete")
    os.utime(left, (0, 0))
    plan.close()
    list(settings.open(durations=DURATIONS).clips())
    (whole,) = durations(tmp_path)
    assert not whole.name.startswith(".")
    (tmp_path / "usual").write_text("")
    assert whole.stat().st_mode == (tmp_path / "usual").stat().st_mode, "it has the usual permissions"


def test_concurrent_scans_do_not_conflict(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One deletes stale temporary files while another renames its cache file."""
    settings = data("folder", root, "data.segment_seconds=1")
    other = settings.open(durations=DURATIONS).clips()
    next(other)
    (unfinished,) = durations(tmp_path)
    real = Path.glob

    def glob(folder: Path, pattern: str) -> Iterator[Path]:
        paths = [*real(folder, pattern)]
        if unfinished in paths:
            assert len([*other]) > 0
        return iter(paths)

    monkeypatch.setattr(Path, "glob", glob)
    assert [*settings.open(durations=DURATIONS).clips()]
    assert not unfinished.exists()


def test_broken_cache_file_is_an_error(root: Path, tmp_path: Path) -> None:
    settings = data("folder", root, "data.segment_seconds=1")
    list(settings.open(durations=DURATIONS).clips())
    (listing,) = durations(tmp_path)
    listing.write_text("{")
    with pytest.raises(InputError, match=r"seconds.*jsonl is not a valid cache file: delete it"):
        list(settings.open(durations=DURATIONS).clips())


def test_impossible_length_in_header_is_ignored(root: Path) -> None:
    """FLAC declares it in 36 bits: here 68 billion samples."""
    content = bytearray(sound(root / "wrong.flac", 2.0, format="FLAC").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    (root / "wrong.flac").write_bytes(content)
    clips = [c for c in folder(root, "data.segment_seconds=1").clips() if c.path.endswith("wrong.flac")]
    assert len(clips) == 1 and clips[0].duration is None
