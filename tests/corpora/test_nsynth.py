"""NSynth is listed from folders or archives; invalid notes are skipped with a reason."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.corpora import fingerprint, load
from pipeline.corpora import tar_archive as archive
from tests.helpers.corpora import data, pack


@pytest.fixture
def root(nsynth_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(nsynth_folder, tmp_path / "nsynth")


def index_of(folder: Path) -> dict:
    return json.loads((folder / "examples.json").read_text())


def test_clips_have_splits_and_labels_of_the_index(root: Path) -> None:
    corpus = data("nsynth", root).open()
    clips = list(corpus.clips())
    assert corpus.skipped == []
    assert len(clips) == 24
    for clip in clips:
        note = index_of(root / f"nsynth-{clip.split}")[clip.key]
        assert clip.labels["pitch"] == note["pitch"]
        assert clip.labels["instrument_family_str"] == note["instrument_family_str"]
        assert Path(clip.path).is_file()
        assert clip.content is None
    assert {clip.split for clip in clips} == {"train", "valid", "test"}
    assert list(corpus.clips()) == clips, "the list is the same each time"


def test_some_splits_may_be_missing(root: Path) -> None:
    shutil.rmtree(root / "nsynth-train")
    assert {clip.split for clip in data("nsynth", root).open().clips()} == {"valid", "test"}


def test_notes_missing_in_index_or_on_disk_are_skipped(root: Path) -> None:
    gone, *_ = index_of(root / "nsynth-train")
    audio = root / "nsynth-train" / "audio"
    (audio / f"{gone}.wav").rename(audio / "stray note.wav")
    (audio / "._hidden.wav").write_bytes(b"left behind by another system")
    corpus = data("nsynth", root).open()
    assert len(list(corpus.clips())) == 23
    assert {(Path(left.path).name, left.reason) for left in corpus.skipped} == {
        (f"{gone}.wav", "in the index, not on disk"),
        ("stray note.wav", "on disk, not in the index"),
    }
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,80}", left.key) for left in corpus.skipped)


def test_a_table_moves_notes_to_other_splits(root: Path) -> None:
    """Notes that it does not list are not in the corpus; the number of those that are missing is reported."""
    names = [name for split in ("train", "valid", "test") for name in index_of(root / f"nsynth-{split}")]
    splits = dict(zip(names[::2], ["test", "train", "valid"] * 4, strict=True))
    rows = [f"{name},{split}\n" for name, split in splits.items()]
    (root / "splits.csv").write_text("".join(["id,split\n", *rows, "organ_acoustic_999-060-100,train\n"]))
    corpus = data("nsynth", root, "data.splits=splits.csv").open()
    assert {clip.key: clip.split for clip in corpus.clips()} == splits
    (skipped,) = corpus.skipped
    assert skipped.reason == "1 of 13 notes of this table are not in the corpus, or are skipped"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data.splits=splits.csv: .* is missing; get it with"),
        ("name,split\na,train\n", "expected a CSV file with the columns id and split"),
        ("id,split\na,dev\n", "unknown split dev, expected one of train, valid, test"),
    ],
)
def test_an_invalid_table_of_splits_is_refused(root: Path, content: str | None, message: str) -> None:
    if content is not None:
        (root / "splits.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        list(data("nsynth", root, "data.splits=splits.csv").open().clips())


def test_repeated_key_is_skipped(root: Path) -> None:
    name, note = next(iter(index_of(root / "nsynth-train").items()))
    index = root / "nsynth-test" / "examples.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), name: note}))
    shutil.copy(root / "nsynth-train" / "audio" / f"{name}.wav", root / "nsynth-test" / "audio")
    corpus = data("nsynth", root).open()
    assert [clip.split for clip in corpus.clips() if clip.key == name] == ["train"]
    assert [(left.key, left.reason) for left in corpus.skipped] == [(name, "another clip has the same key")]


def test_invalid_index_entry_is_skipped(root: Path) -> None:
    index = root / "nsynth-test" / "examples.json"
    notes = json.loads(index.read_text())
    name = next(iter(notes))
    index.write_text(json.dumps({**notes, name: None}))
    corpus = data("nsynth", root).open()
    assert name not in {clip.key for clip in corpus.clips()}
    assert [left.reason for left in corpus.skipped] == ["its entry in the index is not a note"]


@pytest.mark.parametrize(
    "broken", ['{"a": {"pitch": 60}, "b": {"pit', "[1, 2]", "", '{"a" 1}', '{"a": ' + "[" * 100_000]
)
def test_broken_index_is_an_error(root: Path, broken: str) -> None:
    (root / "nsynth-train" / "examples.json").write_text(broken)
    corpus = data("nsynth", root).open()
    with pytest.raises(InputError, match=r"nsynth-train/examples\.json is broken"):
        list(corpus.clips())


def files(folder: Path, *, index: str) -> dict[str, Path]:
    """The members of an official archive, with its index `first` or `last`."""
    audio = {f"{folder.name}/audio/{wav.name}": wav for wav in sorted((folder / "audio").iterdir())}
    examples = {f"{folder.name}/examples.json": folder / "examples.json"}
    return {**examples, **audio} if index == "first" else {**audio, **examples}


@pytest.mark.parametrize("index", ["first", "last"])
def test_archives_equal_folders(root: Path, tmp_path: Path, index: str) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "valid", "test"):
        pack(packed / f"nsynth-{split}.jsonwav.tar.gz", files(root / f"nsynth-{split}", index=index))
    unpacked = {clip.key: clip for clip in data("nsynth", root).open().clips()}
    corpus = data("nsynth", packed).open()
    plan = list(corpus.clips())
    assert corpus.skipped == []
    assert all(clip.content is None for clip in plan), "a listed clip has no content"
    assert {clip.key: (clip.split, clip.labels) for clip in plan} == {
        key: (clip.split, clip.labels) for key, clip in unpacked.items()
    }
    for clip in load(plan):
        assert clip.content == Path(unpacked[clip.key].path).read_bytes()
        assert clip.path.endswith(f".jsonwav.tar.gz::nsynth-{clip.split}/audio/{clip.key}.wav")
    assert list(corpus.clips()) == plan, "the cached scan gives the same clips"


def test_some_clips_can_be_loaded_alone(root: Path, tmp_path: Path) -> None:
    pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="first"))
    plan = list(data("nsynth", tmp_path).open().clips())
    part = [plan[-1], plan[1]]
    assert [clip.content for clip in load(part)] == [
        (root / "nsynth-train/audio" / f"{clip.key}.wav").read_bytes() for clip in part
    ]


def test_archive_is_scanned_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="last"))
    corpus = data("nsynth", tmp_path).open()
    plan = list(corpus.clips())
    monkeypatch.setattr("pipeline.corpora.nsynth.iter_members", lambda *_, **__: pytest.fail("scanned again"))
    assert list(corpus.clips()) == plan
    monkeypatch.undo()
    pack(archive, files(root / "nsynth-test", index="first"))
    assert {clip.span for clip in corpus.clips()} != {clip.span for clip in plan}, "a changed archive is scanned again"


def test_scan_of_a_large_archive_is_logged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.corpora.scan_cache.LARGE_BYTES", 1000)
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="first"))
    list(data("nsynth", tmp_path).open().clips())
    assert "GB are read once" in capsys.readouterr().err
    list(data("nsynth", tmp_path).open().clips())
    assert capsys.readouterr().err == ""


def test_notes_missing_in_index_or_archive_are_skipped(root: Path, tmp_path: Path) -> None:
    members = files(root / "nsynth-test", index="last")
    gone = next(iter(members))
    members["nsynth-test/audio/stray.wav"] = members.pop(gone)
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", members)
    corpus = data("nsynth", tmp_path).open()
    list(corpus.clips())
    assert {(left.key, left.reason) for left in corpus.skipped} == {
        (Path(gone).stem, "in the index, not in the archive"),
        ("stray", "in the archive, not in the index"),
    }


def test_truncated_archive_gives_its_complete_notes(root: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="first"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    corpus = data("nsynth", tmp_path).open()
    plan = list(corpus.clips())
    assert 0 < len(plan) < len(index_of(root / "nsynth-train"))
    for clip in load(plan):
        assert clip.content == (root / "nsynth-train/audio" / f"{clip.key}.wav").read_bytes()
    assert [left for left in corpus.skipped if "truncated archive" in left.reason and left.path == str(archive)]
    assert len(plan) + len(corpus.skipped) - 1 == len(index_of(root / "nsynth-train"))


def test_truncated_archive_without_index_is_an_error(root: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="last"))
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(
        InputError, match=r"nsynth-train\.jsonwav\.tar\.gz contains no examples\.json.*truncated archive.*download"
    ):
        list(data("nsynth", tmp_path).open().clips())


def test_archive_changed_while_read_is_an_error(root: Path, tmp_path: Path) -> None:
    members = files(root / "nsynth-train", index="first")
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", members)
    whole = archive.read_bytes()
    plan = list(data("nsynth", tmp_path).open().clips())
    shorter = pack(tmp_path / "shorter.tar.gz", dict(list(members.items())[:3])).read_bytes()
    for content in (whole[: len(whole) // 2], shorter, b"no longer an archive"):
        archive.write_bytes(content)
        with pytest.raises(
            InputError, match=r"nsynth-train\.jsonwav\.tar\.gz (could not be read to the end|became shorter)"
        ):
            list(load(plan))


@pytest.mark.parametrize("name", ["/etc/examples.json", "nsynth-test/../../examples.json"])
def test_members_outside_the_archive_are_errors(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", {name: b"{}"})
    with pytest.raises(InputError, match="points outside"):
        list(data("nsynth", tmp_path).open().clips())


def test_fingerprint_changes_with_the_input_only(root: Path, tmp_path: Path) -> None:
    clip, *_ = data("nsynth", root).open().clips()
    before = fingerprint(clip)
    assert before == fingerprint(clip)
    Path(clip.path).write_bytes(Path(clip.path).read_bytes()[:-2])
    assert fingerprint(clip) not in {before, ""}
    Path(clip.path).unlink()
    assert fingerprint(clip) == ""
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="first"))
    packed = list(data("nsynth", tmp_path).open().clips())
    assert len({fingerprint(clip) for clip in packed}) == len(packed)


def test_unknown_corpus_is_an_error(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.name=nsynht: .* did you mean 'nsynth'\?"):
        data("nsynth", root, "data.name=nsynht")


def test_missing_folder_error_names_the_command(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=r"data\.root=.*examples\.json.*pipeline\.download data=nsynth"):
            data("nsynth", folder).open()
    (tmp_path / "nsynth-test").mkdir()
    with pytest.raises(InputError, match=r"nsynth-test has no examples\.json"):
        data("nsynth", tmp_path).open()
    (tmp_path / "nsynth-test" / "examples.json").write_text("{}")
    with pytest.raises(InputError, match="contains no clips"):
        list(data("nsynth", tmp_path).open().clips())


def test_seconds_limits_the_notes(nsynth_folder: Path, tmp_path: Path) -> None:
    cut = data("nsynth", nsynth_folder, "data.seconds=1.5", f"data.scan_cache_dir={tmp_path}")
    assert {clip.duration for clip in cut.open().clips()} == {1.5}
    with pytest.raises(InputError, match=r"data\.seconds=0"):
        data("nsynth", nsynth_folder, "data.seconds=0")


def test_name_with_surrogate_is_skipped(root: Path) -> None:
    index = root / "nsynth-test" / "examples.json"
    index.write_text(json.dumps({"a\ud800b": {"pitch": 1}, **json.loads(index.read_text())}))
    corpus = data("nsynth", root).open()
    assert len(list(corpus.clips())) == 24
    ((path, _, reason, _),) = corpus.skipped
    assert path.endswith("a\\ud800b.wav") and reason == "in the index, not on disk"


def header(name: str, kind: bytes, size: bytes) -> bytes:
    """A tar header with arbitrary fields."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157], block[124:136] = kind, size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


PAX = b"20 size=-1000000000\n"
INVALID_HEADERS = {
    "a size below 0": header("a.wav", b"0", b"\xff" * 11 + b"\x00"),
    "an extended size below 0": header("x", b"x", b"%o" % len(PAX))
    + PAX.ljust(512, b"\0")
    + header("a.wav", b"0", b"0"),
    "a name of gigabytes": header("x", b"L", b"77777777777"),
    "extended headers of extended headers": header("x", b"x", b"0") * 3000,
    "a size beyond any": header("a.wav", b"0", b"\x80" + b"\x7f" * 11),
}


@pytest.mark.parametrize("name", INVALID_HEADERS)
def test_invalid_tar_headers_are_errors(name: str, tmp_path: Path) -> None:
    """The reader neither hangs nor exhausts the memory."""
    (tmp_path / "a.tar").write_bytes(INVALID_HEADERS[name] + bytes(10_240))
    with pytest.raises(archive.TruncatedArchive):
        list(archive.iter_members(tmp_path / "a.tar", "examples.json"))
