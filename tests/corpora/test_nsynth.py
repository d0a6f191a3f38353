"""NSynth is listed as it is on disk or in its archives; what is amiss is set aside by name."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.corpora import fingerprint, load, open_corpus
from pipeline.corpora import tar_archive as archive
from pipeline.corpora.nsynth import iter_json_entries
from tests.helpers.corpora import data, pack


@pytest.fixture
def root(nsynth_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(nsynth_folder, tmp_path / "nsynth")


def index_of(folder: Path) -> dict:
    return json.loads((folder / "examples.json").read_text())


def test_clips_carry_splits_and_labels_of_the_index(root: Path) -> None:
    corpus = open_corpus(data("nsynth", root))
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
    assert list(corpus.clips()) == clips, "the plan is the same each time"


def test_a_subset_of_the_splits_may_be_there(root: Path) -> None:
    shutil.rmtree(root / "nsynth-train")
    assert {clip.split for clip in open_corpus(data("nsynth", root)).clips()} == {"valid", "test"}


def test_index_and_disk_disagree(root: Path) -> None:
    gone, *_ = index_of(root / "nsynth-train")
    audio = root / "nsynth-train" / "audio"
    (audio / f"{gone}.wav").rename(audio / "stray note.wav")
    (audio / "._hidden.wav").write_bytes(b"left behind by another system")
    corpus = open_corpus(data("nsynth", root))
    assert len(list(corpus.clips())) == 23
    assert {(Path(left.path).name, left.reason) for left in corpus.skipped} == {
        (f"{gone}.wav", "in the index, not on disk"),
        ("stray note.wav", "on disk, not in the index"),
    }
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,80}", left.key) for left in corpus.skipped)


def test_one_key_in_two_splits_is_used_once(root: Path) -> None:
    name, note = next(iter(index_of(root / "nsynth-train").items()))
    index = root / "nsynth-test" / "examples.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), name: note}))
    shutil.copy(root / "nsynth-train" / "audio" / f"{name}.wav", root / "nsynth-test" / "audio")
    corpus = open_corpus(data("nsynth", root))
    assert [clip.split for clip in corpus.clips() if clip.key == name] == ["train"]
    assert [(left.key, left.reason) for left in corpus.skipped] == [(name, "another clip has the same key")]


def test_an_entry_that_is_no_note_is_set_aside(root: Path) -> None:
    index = root / "nsynth-test" / "examples.json"
    notes = json.loads(index.read_text())
    name = next(iter(notes))
    index.write_text(json.dumps({**notes, name: None}))
    corpus = open_corpus(data("nsynth", root))
    assert name not in {clip.key for clip in corpus.clips()}
    assert [left.reason for left in corpus.skipped] == ["its entry in the index is not a note"]


@pytest.mark.parametrize("broken", ['{"a": {"pitch": 60}, "b": {"pit', "[1, 2]", "", '{"a": {} x, "b": {}}', '{"a" 1}'])
def test_a_broken_index_is_refused_by_name(root: Path, broken: str) -> None:
    (root / "nsynth-train" / "examples.json").write_text(broken)
    corpus = open_corpus(data("nsynth", root))
    with pytest.raises(InputError, match=r"nsynth-train/examples\.json"):
        list(corpus.clips())


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists)
    ),
    st.sampled_from([None, 1]),
)
@settings(max_examples=40)
def test_the_index_is_read_as_json_reads_it(value: dict, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert dict(iter_json_entries(io.BytesIO(text), "index")) == value


def test_an_index_longer_than_any_buffer_is_read_whole() -> None:
    value = {f"note-{number}": {"number": number, "text": "ü" * 50} for number in range(40_000)}
    text = json.dumps(value, ensure_ascii=False).encode()
    assert len(text) > 4 << 20
    assert dict(iter_json_entries(io.BytesIO(text), "index")) == value


def files(folder: Path, *, index: str) -> dict[str, Path]:
    """The members of an official archive, its index `first` or `last`."""
    audio = {f"{folder.name}/audio/{wav.name}": wav for wav in sorted((folder / "audio").iterdir())}
    examples = {f"{folder.name}/examples.json": folder / "examples.json"}
    return {**examples, **audio} if index == "first" else {**audio, **examples}


@pytest.mark.parametrize("index", ["first", "last"])
def test_archives_give_the_clips_and_the_bytes_of_the_folders(root: Path, tmp_path: Path, index: str) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "valid", "test"):
        pack(packed / f"nsynth-{split}.jsonwav.tar.gz", files(root / f"nsynth-{split}", index=index))
    unpacked = {clip.key: clip for clip in open_corpus(data("nsynth", root)).clips()}
    corpus = open_corpus(data("nsynth", packed))
    plan = list(corpus.clips())
    assert corpus.skipped == []
    assert all(clip.content is None for clip in plan), "a plan holds no audio"
    assert {clip.key: (clip.split, clip.labels) for clip in plan} == {
        key: (clip.split, clip.labels) for key, clip in unpacked.items()
    }
    for clip in load(plan):
        assert clip.content == Path(unpacked[clip.key].path).read_bytes()
        assert clip.path.endswith(f".jsonwav.tar.gz::nsynth-{clip.split}/audio/{clip.key}.wav")
    assert list(corpus.clips()) == plan, "the kept listing gives the same plan"


def test_a_part_of_a_plan_loads_alone(root: Path, tmp_path: Path) -> None:
    pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="first"))
    plan = list(open_corpus(data("nsynth", tmp_path)).clips())
    part = [plan[-1], plan[1]]
    assert [clip.content for clip in load(part)] == [
        (root / "nsynth-train/audio" / f"{clip.key}.wav").read_bytes() for clip in part
    ]


def test_an_archive_is_searched_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="last"))
    corpus = open_corpus(data("nsynth", tmp_path))
    plan = list(corpus.clips())
    monkeypatch.setattr("pipeline.corpora.nsynth.iter_members", lambda *_, **__: pytest.fail("searched again"))
    assert list(corpus.clips()) == plan
    monkeypatch.undo()
    pack(archive, files(root / "nsynth-test", index="first"))
    assert {clip.span for clip in corpus.clips()} != {clip.span for clip in plan}, "a changed archive is searched anew"


def test_reading_a_large_archive_through_is_announced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.corpora.scan_cache.LARGE_BYTES", 1000)
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="first"))
    list(open_corpus(data("nsynth", tmp_path)).clips())
    assert "GB are read once" in capsys.readouterr().err
    list(open_corpus(data("nsynth", tmp_path)).clips())
    assert capsys.readouterr().err == ""


def test_archive_and_index_disagree(root: Path, tmp_path: Path) -> None:
    members = files(root / "nsynth-test", index="last")
    gone = next(iter(members))
    members["nsynth-test/audio/stray.wav"] = members.pop(gone)
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", members)
    corpus = open_corpus(data("nsynth", tmp_path))
    list(corpus.clips())
    assert {(left.key, left.reason) for left in corpus.skipped} == {
        (Path(gone).stem, "in the index, not in the archive"),
        ("stray", "in the archive, not in the index"),
    }


def test_a_torn_archive_gives_what_is_whole_and_says_so(root: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="first"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    corpus = open_corpus(data("nsynth", tmp_path))
    plan = list(corpus.clips())
    assert 0 < len(plan) < len(index_of(root / "nsynth-train"))
    for clip in load(plan):
        assert clip.content == (root / "nsynth-train/audio" / f"{clip.key}.wav").read_bytes()
    assert [left for left in corpus.skipped if "torn" in left.reason and left.path == str(archive)]
    assert len(plan) + len(corpus.skipped) - 1 == len(index_of(root / "nsynth-train"))


def test_a_torn_archive_whose_index_is_lost_is_refused(root: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", files(root / "nsynth-train", index="last"))
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(
        InputError, match=r"nsynth-train\.jsonwav\.tar\.gz contains no examples\.json.*truncated archive.*download"
    ):
        list(open_corpus(data("nsynth", tmp_path)).clips())


def test_an_archive_that_changes_while_it_is_read_is_named(root: Path, tmp_path: Path) -> None:
    members = files(root / "nsynth-train", index="first")
    archive = pack(tmp_path / "nsynth-train.jsonwav.tar.gz", members)
    whole = archive.read_bytes()
    plan = list(open_corpus(data("nsynth", tmp_path)).clips())
    shorter = pack(tmp_path / "shorter.tar.gz", dict(list(members.items())[:3])).read_bytes()
    for content in (whole[: len(whole) // 2], shorter, b"no longer an archive"):
        archive.write_bytes(content)
        with pytest.raises(
            InputError, match=r"nsynth-train\.jsonwav\.tar\.gz (could not be read to the end|became shorter)"
        ):
            list(load(plan))


@pytest.mark.parametrize("name", ["/etc/examples.json", "nsynth-test/../../examples.json"])
def test_members_that_point_outside_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", {name: b"{}"})
    with pytest.raises(InputError, match="points outside"):
        list(open_corpus(data("nsynth", tmp_path)).clips())


def test_fingerprints_change_with_the_input_only(root: Path, tmp_path: Path) -> None:
    clip, *_ = open_corpus(data("nsynth", root)).clips()
    before = fingerprint(clip)
    assert before == fingerprint(clip)
    Path(clip.path).write_bytes(Path(clip.path).read_bytes()[:-2])
    assert fingerprint(clip) not in {before, ""}
    Path(clip.path).unlink()
    assert fingerprint(clip) == ""
    pack(tmp_path / "nsynth-test.jsonwav.tar.gz", files(root / "nsynth-test", index="first"))
    packed = list(open_corpus(data("nsynth", tmp_path)).clips())
    assert len({fingerprint(clip) for clip in packed}) == len(packed)


def test_a_corpus_that_there_is_not_is_named(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.name=nsynht is no corpus: choose nsynth, notes, folder or jamendo"):
        open_corpus({"name": "nsynht", "root": str(root)})


def test_missing_and_empty_folders_name_the_setting_and_the_command(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=r"data\.root=.*examples\.json.*pipeline\.download data=nsynth"):
            open_corpus(data("nsynth", folder))
    (tmp_path / "nsynth-test").mkdir()
    with pytest.raises(InputError, match=r"nsynth-test has no examples\.json"):
        open_corpus(data("nsynth", tmp_path))
    (tmp_path / "nsynth-test" / "examples.json").write_text("{}")
    with pytest.raises(InputError, match="contains no clips"):
        list(open_corpus(data("nsynth", tmp_path)).clips())


def test_notes_may_be_cut_to_their_first_seconds(nsynth_folder: Path, tmp_path: Path) -> None:
    cut = data("nsynth", nsynth_folder, "data.seconds=1.5", f"data.scan_cache_dir={tmp_path}")
    assert {clip.duration for clip in open_corpus(cut).clips()} == {1.5}
    with pytest.raises(InputError, match=r"data\.seconds=0"):
        open_corpus({**cut, "seconds": 0})


def test_a_name_of_half_a_character_is_set_aside(root: Path) -> None:
    index = root / "nsynth-test" / "examples.json"
    index.write_text(json.dumps({"a\ud800b": {"pitch": 1}, **json.loads(index.read_text())}))
    corpus = open_corpus(data("nsynth", root))
    assert len(list(corpus.clips())) == 24
    ((path, _, reason),) = corpus.skipped
    assert path.endswith("a\\ud800b.wav") and reason == "in the index, not on disk"


def test_an_index_nested_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="the index is broken: an entry is nested too deep"):
        list(iter_json_entries(io.BytesIO(b'{"a": ' + b"[" * 100_000), "the index"))


def header(name: str, kind: bytes, size: bytes) -> bytes:
    """A header of a tar that may say anything."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157], block[124:136] = kind, size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


PAX = b"20 size=-1000000000\n"
LIES = {
    "a size below 0": header("a.wav", b"0", b"\xff" * 11 + b"\x00"),
    "an extended size below 0": header("x", b"x", b"%o" % len(PAX))
    + PAX.ljust(512, b"\0")
    + header("a.wav", b"0", b"0"),
    "a name of gigabytes": header("x", b"L", b"77777777777"),
    "extended headers of extended headers": header("x", b"x", b"0") * 3000,
    "a size beyond any": header("a.wav", b"0", b"\x80" + b"\x7f" * 11),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie_tear_an_archive(name: str, tmp_path: Path) -> None:
    """They do not hang its reader, nor take all memory."""
    (tmp_path / "a.tar").write_bytes(LIES[name] + bytes(10_240))
    with pytest.raises(archive.TruncatedArchive):
        list(archive.iter_members(tmp_path / "a.tar", "examples.json"))
