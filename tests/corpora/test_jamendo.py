"""MTG-Jamendo: rows and files are matched or skipped, artists stay in one split, duplicates are skipped."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio.audio_io import AudioError, read
from pipeline.common.errors import InputError
from pipeline.corpora import fingerprint, load
from pipeline.corpora.clip import Clip
from tests.helpers.corpora import Row, data, mp3, music, pack, tagged, write_metadata

SHARES = ("data.valid=0.3", "data.test=0.3")


@pytest.fixture
def root(jamendo_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(jamendo_folder, tmp_path / "jamendo")


def plan(root: Path, *settings: str, digest=None) -> tuple[list[Clip], dict[str, str]]:
    """Return the clips, and the reasons of skipped inputs by path below the root."""
    corpus = data("jamendo", root, "data.segment_seconds=2", *settings).open(digest)
    clips = list(corpus.clips())
    return clips, {left.path.removeprefix(f"{root}/"): left.reason for left in corpus.skipped}


def tracks(clips: list[Clip]) -> list[str]:
    return list(dict.fromkeys(Path(clip.path).stem for clip in clips))


def add_row(root: Path, line: str) -> None:
    with (root / "raw_30s.tsv").open("a") as file:
        file.write(line + "\n")


def row(track: int, path: str, seconds: float | str = 3.0, artist: int = 9) -> str:
    return f"track_{track:07d}\tartist_{artist:06d}\talbum_000001\t{path}\t{seconds}\tgenre---test"


def sound_of(source: str | bytes) -> str | None:
    """A `digest`: a hash of the decoded audio."""
    try:
        return hashlib.sha256(read(source, rate=24_000).tobytes()).hexdigest()
    except AudioError:
        return None


def test_segments_have_the_labels_of_the_track(root: Path) -> None:
    clips, skipped = plan(root)
    assert skipped == {}
    assert len(tracks(clips)) == 8
    first = next(clip for clip in clips if "565874" in clip.path)
    assert first.key == "track_0565874-00000"
    assert first.labels == {
        "track": "track_0565874",
        "artist": "artist_000701",
        "album": "album_005701",
        "tags": ["genre---chamber", "mood/theme---mood2", "instrument---soundfont"],
    }
    cuts = [(clip.start, clip.duration) for clip in clips if "565874" in clip.path]
    assert cuts == [(0.0, 2.0), (2.0, 2.0), (4.0, 1.2)]
    for clip in clips:
        assert read(clip.path, start=clip.start, duration=clip.duration, rate=24_000).size == pytest.approx(
            24_000 * (clip.duration or 0), abs=24 * 60
        )
    assert len([*groupby(clips, lambda clip: clip.path)]) == 8, "segments of a track are contiguous"
    assert plan(root)[0] == clips


def test_artists_stay_in_one_split(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number in range(60):
        path = tmp_path / "j" / "00" / f"{number}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(2, "big") * 3000)
        rows.append((number, number // 3, f"00/{number}.mp3", 9.0, []))
    write_metadata(tmp_path / "j" / "raw_30s.tsv", rows)
    clips, _ = plan(tmp_path / "j", *SHARES)
    of_artist: dict[str, set] = {}
    for clip in clips:
        of_artist.setdefault(clip.labels["artist"], set()).add(clip.split)
    assert len(of_artist) == 20
    assert all(len(splits) == 1 for splits in of_artist.values())
    assert set.union(*of_artist.values()) == {"train", "valid", "test"}


def test_segments_per_track_are_sampled_by_seed(root: Path) -> None:
    every, _ = plan(root, "data.segment_seconds=1")
    some, _ = plan(root, "data.segment_seconds=1", "data.segments_per_track=2")
    other, _ = plan(root, "data.segment_seconds=1", "data.segments_per_track=2", "data.seed=1")
    assert set(Counter(clip.path for clip in some).values()) == {2}
    assert {(clip.key, clip.start) for clip in some} < {(clip.key, clip.start) for clip in every}
    assert [clip.key for clip in some] != [clip.key for clip in other]
    assert some == plan(root, "data.segment_seconds=1", "data.segments_per_track=2")[0]


def test_excerpt_seconds_limit_the_segments(root: Path) -> None:
    clips, _ = plan(root, "data.excerpt_seconds=3")
    assert max(clip.start + (clip.duration or 0) for clip in clips) == 3


def packed(root: Path, tmp_path: Path, *, low: bool = False) -> Path:
    """Pack the tracks of a root into two tars as published, each with an entry for its folder first."""
    out = tmp_path / "packed"
    out.mkdir()
    shutil.copy(root / "raw_30s.tsv", out)
    for number, folders in enumerate((slice(0, 4), slice(4, 8))):
        name = out / f"raw_30s_audio{'-low' if low else ''}-{number:02d}.tar"
        with tarfile.open(name, "w") as tar:
            for folder in sorted(path for path in root.iterdir() if path.is_dir())[folders]:
                tar.add(folder, folder.name, recursive=False)
                for file in sorted(folder.iterdir()):
                    tar.add(file, f"{folder.name}/{file.stem}.low.mp3" if low else f"{folder.name}/{file.name}")
    return out


@pytest.mark.parametrize("low", [False, True])
def test_tars_equal_folders(root: Path, tmp_path: Path, low: bool) -> None:
    clips, _ = plan(root)
    from_tars, skipped = plan(packed(root, tmp_path, low=low))
    assert skipped == {}
    assert {clip.key: (clip.split, clip.labels, clip.start, clip.duration) for clip in from_tars} == {
        clip.key: (clip.split, clip.labels, clip.start, clip.duration) for clip in clips
    }
    paths = {clip.key: clip.path for clip in clips}
    for clip in load(from_tars):
        assert clip.content == Path(paths[clip.key]).read_bytes()
    assert len({fingerprint(clip) for clip in from_tars}) == 8, "one for each track, not for each segment"


def test_truncated_tar_gives_its_complete_tracks(root: Path, tmp_path: Path) -> None:
    folder = packed(root, tmp_path)
    tar = folder / "raw_30s_audio-01.tar"
    tar.write_bytes(tar.read_bytes()[:-30_000])
    clips, skipped = plan(folder)
    assert 4 < len(tracks(clips)) < 8
    assert skipped["raw_30s_audio-01.tar"].startswith("truncated archive")
    assert "in raw_30s.tsv, not on disk" in skipped.values()
    for clip in load(clips):
        assert soundfile.info(io.BytesIO(clip.content or b"")).duration > 1


@pytest.mark.parametrize("name", ["/etc/00/1.mp3", "00/../../1.mp3"])
def test_members_outside_the_tar_are_errors(root: Path, tmp_path: Path, name: str) -> None:
    folder = packed(root, tmp_path)
    pack(folder / "raw_30s_audio-02.tar", {name: b"x"})
    with pytest.raises(InputError, match=r"raw_30s_audio-02\.tar.*points outside"):
        plan(folder)


def test_rows_without_files_and_files_without_rows(root: Path) -> None:
    (root / "00" / "565800.mp3").unlink()
    (root / "11" / "999911.mp3").write_bytes(mp3(50, 1))
    shutil.copy(root / "11" / "565911.mp3", root / "11" / "565911.low.mp3")
    (root / "22" / "566022.mp3").write_bytes(b"")
    (root / "37" / "._565837.mp3").write_bytes(b"left by another system")
    for number in range(3):
        add_row(root, row(number, f"99/{number}.mp3"))
    clips, skipped = plan(root)
    assert len(tracks(clips)) == 6
    assert skipped == {
        "00/565800.mp3": "in raw_30s.tsv, not on disk",
        "11/999911.mp3": "on disk, not in raw_30s.tsv",
        "11/565911.mp3": f"another file of the track: {root}/11/565911.low.mp3",
        "22/566022.mp3": "empty: the file has no bytes",
        "99/": "none of its 3 tracks is on disk",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("track_1", "has 1 columns, expected 5 or more"),
        (row(1, "00/1.mp3", "soon"), "'soon' is not a duration"),
        (row(1, "00/1.mp3", 0), "'0' is not a duration"),
        (row(1, "00/1.mp3", "nan"), "'nan' is not a duration"),
        (row(1, "00/1.mp3", "-3"), "'-3' is not a duration"),
        (row(565_800, "00/1.mp3"), "repeats a track"),
        (row(1, "00/565800.mp3"), "repeats a track"),
    ],
)
def test_invalid_rows_are_skipped_with_their_line(root: Path, line: str, reason: str) -> None:
    add_row(root, line)
    corpus = data("jamendo", root).open()
    assert len(tracks(list(corpus.clips()))) == 8
    (left,) = corpus.skipped
    assert left.reason.startswith("line 10 of raw_30s.tsv")
    assert reason in left.reason


@pytest.mark.parametrize("name", ["two words", "Größe Ω", "v1.2", 'quo"te', '"quoted"'])
def test_any_name_matches_its_row(root: Path, name: str) -> None:
    path = root / "00" / f"{name}.mp3"
    path.write_bytes(mp3(60, 2.5))
    add_row(root, row(777, f"00/{name}.mp3"))
    clips, skipped = plan(root)
    assert skipped == {}
    clip, *_ = [clip for clip in clips if clip.labels["track"] == "track_0000777"]
    assert Path(clip.path) == path
    assert re.fullmatch("[A-Za-z0-9_-]{1,80}", clip.key)


def test_quotes_are_ordinary_characters(root: Path) -> None:
    """A quote at the start of a tag must not extend to the next quote, some lines later."""
    add_row(root, "\t".join(["track_1", "artist_1", "album_1", "00/1.mp3", "3.0", '"genre---quoted']))
    for track in (2, 3):
        add_row(root, row(track, f"00/{track}.mp3"))
        (root / "00" / f"{track}.mp3").write_bytes(bytes([track]) * 3000)
    (root / "00" / "1.mp3").write_bytes(bytes([1]) * 3000)
    clips, skipped = plan(root)
    assert skipped == {} and len(tracks(clips)) == 11
    assert ['"genre---quoted'] in [clip.labels["tags"] for clip in clips]


def test_duplicates_with_other_tags_are_skipped(root: Path) -> None:
    """Duplicates, also with other tags and artists, are used once, and so in one split."""
    original = (root / "59" / "566059.mp3").read_bytes()
    (root / "61").mkdir()
    (root / "61" / "61.mp3").write_bytes(original)
    (root / "61" / "161.mp3").write_bytes(tagged(original, "Another Name"))
    for track in (61, 161):
        add_row(root, row(track, f"61/{track}.mp3", 3.7, artist=track))
    clips, skipped = plan(root, *SHARES)
    assert len(tracks(clips)) == 8
    assert skipped == {f"61/{track}.mp3": "duplicate: the same audio as 59/566059.mp3" for track in (61, 161)}


def test_duplicates_with_apev2_tags_are_skipped(root: Path) -> None:
    original = (root / "00" / "565800.mp3").read_bytes()
    head = b"APETAGEX" + (2000).to_bytes(4, "little") + (64).to_bytes(4, "little") + (1).to_bytes(4, "little")
    tag = head + b"\0\0\0\xa0" + bytes(8) + b"Title".ljust(32) + head + b"\0\0\0\x80" + bytes(8)
    tag = tag.replace((2000).to_bytes(4, "little"), (64).to_bytes(4, "little"))  # items and footer
    (root / "00" / "91.mp3").write_bytes(original + tag)
    (root / "00" / "92.mp3").write_bytes(tagged(original + tag, "both"))
    for track in (91, 92):
        add_row(root, row(track, f"00/{track}.mp3"))
    _, skipped = plan(root)
    assert skipped == {f"00/{track}.mp3": "duplicate: the same audio as 00/565800.mp3" for track in (91, 92)}


def test_duplicates_in_tars_are_skipped(root: Path, tmp_path: Path) -> None:
    original = (root / "00" / "565800.mp3").read_bytes()
    (root / "85" / "85.mp3").write_bytes(tagged(original, "Later"))
    add_row(root, row(85, "85/85.mp3"))
    clips, skipped = plan(packed(root, tmp_path))
    assert len(tracks(clips)) == 8
    assert skipped == {
        "raw_30s_audio-01.tar::85/85.mp3": "duplicate: the same audio as raw_30s_audio-00.tar/00/565800.mp3"
    }


def encode_audio(wav: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, 44_100, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    return file.getvalue()


def test_equal_beginnings_are_not_duplicates(root: Path) -> None:
    """Their probes are equal, their frames differ: the decoded audio decides."""
    wav = np.tile(music(70, 2), (24, 1))
    other = wav.copy()
    other[-44_100:] = music(71, 1)
    for track, sound in ((91, wav), (92, other)):
        (root / "00" / f"{track}.mp3").write_bytes(encode_audio(sound))
        add_row(root, row(track, f"00/{track}.mp3", 48))
    digested = []
    clips, skipped = plan(root, digest=lambda source: digested.append(source) or sound_of(source))
    assert skipped == {}
    assert {"91", "92"} <= set(tracks(clips))
    assert sorted(Path(source).name for source in digested) == ["91.mp3", "92.mp3"]
    again = []
    plan(root, digest=lambda source: again.append(source))
    assert again == [], "decoded once, then cached"


def test_duplicates_with_different_frames_are_skipped(root: Path, tmp_path: Path) -> None:
    """The encoder's tag in the first frame differs, the decoded audio does not."""
    content = bytearray(encode_audio(np.tile(music(72, 2), (24, 1))))
    (root / "00" / "91.mp3").write_bytes(content)
    folder = content.find(b"LAME")
    assert 0 < folder < 1000
    content[folder : folder + 9] = b"LAMEx.yz "
    (root / "00" / "92.mp3").write_bytes(content)
    for track in (91, 92):
        add_row(root, row(track, f"00/{track}.mp3", 48))
    _, skipped = plan(packed(root, tmp_path), digest=sound_of)
    assert list(skipped.values()) == ["duplicate: the same audio as raw_30s_audio-00.tar/00/91.mp3"]
    _, skipped = plan(root, digest=sound_of)
    assert skipped == {"00/92.mp3": "duplicate: the same audio as 00/91.mp3"}
    _, skipped = plan(root)
    assert skipped == {}, "without a digest only equal bytes count"


def test_undecodable_files_are_not_duplicates(root: Path) -> None:
    for track, content in ((91, b"junk" * 50), (92, b"junk" * 50), (93, b"ID3\x03\0\0\x7f\x7f\x7f\x7f"), (94, b"TAG")):
        (root / "00" / f"{track}.mp3").write_bytes(content)
        add_row(root, row(track, f"00/{track}.mp3", 48))
    clips, skipped = plan(root, digest=sound_of)
    assert len(tracks(clips)) == 8 + len({b"junk", b"no frames"})
    assert skipped["00/92.mp3"] == "duplicate: the same audio as 00/91.mp3"


def test_audio_and_metadata_are_located(root: Path, tmp_path: Path) -> None:
    whole, _ = plan(root)
    home = tmp_path / "home"
    shutil.copytree(root, home / "raw_30s" / "audio")
    (home / "data").mkdir()
    (home / "raw_30s" / "audio" / "raw_30s.tsv").rename(home / "data" / "autotagging.tsv")
    assert [clip.key for clip in plan(home)[0]] == [clip.key for clip in whole]
    (home / "data" / "autotagging.tsv").rename(tmp_path / "mine.tsv")
    names = (f"data.metadata={tmp_path / 'mine.tsv'}", f"data.audio={home / 'raw_30s' / 'audio'}")
    assert [clip.key for clip in plan(home, *names)[0]] == [clip.key for clip in whole]


def test_missing_files_error_names_the_command(root: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=r"data\.(root|audio).*565800\.mp3.*pipeline\.download data=jamendo"):
            plan(folder)
    (root / "raw_30s.tsv").rename(root / "other.tsv")
    with pytest.raises(InputError, match=r"data\.metadata was not found at .*raw_30s\.tsv"):
        plan(root)
    with pytest.raises(InputError, match=r"data\.audio was not found at /nowhere"):
        plan(root, "data.audio=/nowhere")
    (root / "raw_30s.tsv").write_text("id,artist\n1,2\n")
    with pytest.raises(InputError, match=r"raw_30s\.tsv is not MTG-Jamendo's metadata"):
        plan(root)
    with pytest.raises(InputError, match=r"data\.segments_per_track=0"):
        plan(root, "data.segments_per_track=0")
