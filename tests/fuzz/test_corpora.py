"""Damaged corpora: NSynth's index, Jamendo's metadata, archives, and the responses of servers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given

from pipeline.config.cli import load_settings
from pipeline.corpora import CorpusSettings, RemoteFile, load, tar_archive
from pipeline.corpora.download.settings import DownloadSettings
from tests.helpers.corpora import data
from tests.helpers.damage import damaged, damaged_json, inside, mended_tar, refused_or_right, seeds, some, text_of

NOTE = {"pitch": 60, "velocity": 100, "instrument": 3, "instrument_str": "bass_3", "qualities_str": ["dark"], "note": 7}
INDEX = {f"bass_{i}": NOTE for i in range(4)}
TRACKS = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n" + "".join(
    f"track_{i}\tartist_{i}\talbum_{i}\t00/{i}.mp3\t{20.5 + i}\tgenre---rock\tmood---{i}\n" for i in range(4)
)
SUMS = "".join(f"{i:064x} raw_30s_audio-0{i}.tar\n" for i in range(4))


SETTINGS = {name: data(name, Path("unused")) for name in ("nsynth", "jamendo")}  # composed once

DOWNLOAD = load_settings(DownloadSettings, ["data=jamendo"])


def nsynth(root: Path) -> CorpusSettings:
    return SETTINGS["nsynth"].model_copy(update={"root": str(root), "scan_cache_dir": f"{root}/scan_cache"})


def jamendo(root: Path) -> CorpusSettings:
    return SETTINGS["jamendo"].model_copy(update={"root": str(root), "scan_cache_dir": f"{root}/scan_cache"})


def use(settings: CorpusSettings, most: int = 100_000) -> None:
    """List a corpus, and read the clips in archives."""
    corpus = settings.open()
    count = 0
    for clip in load(corpus.clips()):
        count += 1
        json.dumps([clip.key, clip.path, clip.labels])
        assert clip.span is None or len(clip.content or b"") == clip.span[1]
        assert Path(settings.root) in Path(tar_archive.archive_of(clip.path) if clip.span else clip.path).parents
    assert count < most
    for path, key, reason, _ in corpus.skipped:
        (path + key + reason).encode()


@some(150)
@given(seed=seeds)
def test_damaged_nsynth_index(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "nsynth-train"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for name in INDEX:
        (folder / "audio" / f"{name}.wav").write_bytes(b"x")
    whole = json.dumps(INDEX, indent=1).encode()
    new = damaged(seed, [whole]) if seed % 3 == 0 else text_of(damaged_json(seed, INDEX)).encode()
    (folder / "examples.json").write_bytes(new)
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        use(nsynth(tmp_path))


@pytest.mark.parametrize("text", [b'{"a": "', b'{"a": [', b'{"a": {"b": ', b"{" + b" " * 100, b'{"a": ' + b"1" * 100])
def test_unterminated_index_fails_fast(tmp_path: Path, text: bytes) -> None:
    """50 MB without an end."""
    (tmp_path / "nsynth-train").mkdir()
    (tmp_path / "nsynth-train" / "examples.json").write_bytes(text + text[-1:] * 50_000_000)
    with refused_or_right("examples.json is broken"):
        use(nsynth(tmp_path))


@some(150)
@given(seed=seeds)
def test_damaged_jamendo_metadata(tmp_path: Path, seed: int) -> None:
    (tmp_path / "00").mkdir(exist_ok=True)
    for i in range(4):
        (tmp_path / "00" / f"{i}.mp3").write_bytes(bytes([i]) * 100)
    (tmp_path / "raw_30s.tsv").write_bytes(damaged(seed, [TRACKS.encode()]))
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        use(jamendo(tmp_path))


@pytest.mark.parametrize("seconds", ["1e300", "inf", "nan", "-1", "1e9"])
def test_track_of_impossible_length_is_skipped(tmp_path: Path, seconds: str) -> None:
    (tmp_path / "00").mkdir()
    for i in range(4):
        (tmp_path / "00" / f"{i}.mp3").write_bytes(bytes([i]) * 100)
    (tmp_path / "raw_30s.tsv").write_text(TRACKS.replace("20.5", seconds))
    with refused_or_right():
        use(jamendo(tmp_path), 100)


def tars() -> list[bytes]:
    """Archives of every kind, with unusual members."""
    archives = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for odd in (False, True):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w", format=form) as tar:
                _add(tar, "nsynth-train/examples.json", json.dumps(INDEX).encode())
                for name in INDEX:
                    _add(tar, f"nsynth-train/audio/{name}.wav", b"sound" * 50)
                if odd:
                    _add(
                        tar,
                        "nsynth-train/" + "é" * 40 + "/" + "x" * (90 if form == tarfile.USTAR_FORMAT else 900),
                        b"x",
                    )
                    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
                        link = tarfile.TarInfo("nsynth-train/audio/bass_0.wav")
                        link.type, link.linkname = kind, "../../../../etc/passwd"
                        tar.addfile(link)
            archives.append(content.getvalue())
    return archives


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


TARS = tars()


@some(150)
@given(seed=seeds)
def test_damaged_nsynth_archive(tmp_path: Path, seed: int) -> None:
    """A damaged header, or sometimes damaged compression."""
    data = mended_tar(seed, damaged(seed, TARS) if seed % 2 else TARS[seed // 2 % len(TARS)])
    folded = gzip.compress(data, 1)
    data = damaged(seed, [folded]) if seed % 5 == 0 else folded
    (tmp_path / "nsynth-train.jsonwav.tar.gz").write_bytes(data)
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        use(nsynth(tmp_path))


@some(150)
@given(seed=seeds)
def test_damaged_archive_members(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(mended_tar(seed, damaged(seed, TARS) if seed % 2 else TARS[seed // 2 % len(TARS)]))
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        try:
            for member, content in tar_archive.iter_members(path, content_suffix=".json"):
                assert 0 <= member.offset <= member.offset + member.size <= path.stat().st_size
                assert not member.name.startswith("/") and ".." not in member.name.split("/")
                assert content is None or len(content) == member.size
        except tar_archive.TruncatedArchive as error:
            assert "\n" not in str(error)


@some(150)
@given(seed=seeds)
def test_damaged_checksum_list(tmp_path: Path, seed: int) -> None:
    """Whatever a server lists is written below data.root."""
    settings = DOWNLOAD.model_copy(update={"data": jamendo(tmp_path)})

    def get(remote: RemoteFile) -> None:
        lines = damaged(seed, [SUMS.encode(), SUMS.replace("raw_30s_audio", "../../../x").encode()])
        remote.path.write_bytes(lines if seed % 4 else SUMS.replace("raw_30s_audio", "/etc/x").encode())

    (tmp_path / "raw_30s_audio_sha256_tars.txt").unlink(missing_ok=True)
    with inside(tmp_path), refused_or_right():
        for remote in settings.data.remote_files(settings, get):
            assert tmp_path in remote.path.parents and ".." not in remote.path.parts
