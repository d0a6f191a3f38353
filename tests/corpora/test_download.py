"""`python -m pipeline.download` downloads a corpus that can be opened, resumes, and reports failures."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings
from pipeline.corpora import RemoteFile
from pipeline.corpora.download.settings import DownloadSettings
from pipeline.download import main
from tests.helpers.corpora import data, pack
from tests.helpers.download_server import Site, serve

HASTY = ("attempts=3", "timeout=1", "pause=0.01")


@pytest.fixture
def site(nsynth_folder: Path, jamendo_folder: Path, tmp_path: Path) -> Iterator[Site]:
    """Serve NSynth at /nsynth, two tars of MTG-Jamendo at /jamendo, and its lists at /lists."""
    files = {}
    for split in ("train", "valid", "test"):
        folder, name = nsynth_folder / f"nsynth-{split}", f"nsynth-{split}.jsonwav.tar.gz"
        members = [folder / "examples.json", *sorted((folder / "audio").iterdir())]
        packed = pack(tmp_path / name, {str(file.relative_to(nsynth_folder)): file for file in members})
        files[f"/nsynth/{name}"] = packed.read_bytes()
    sums = []
    for number, folders in enumerate(("[0-4]*", "[5-9]*")):
        name = f"raw_30s_audio-{number:02d}.tar"
        tracks = sorted(jamendo_folder.glob(f"{folders}/*.mp3"))
        content = pack(tmp_path / name, {str(file.relative_to(jamendo_folder)): file for file in tracks}).read_bytes()
        files[f"/jamendo/audio/{name}"] = content
        sums.append(f"{hashlib.sha256(content).hexdigest()} {name}\n")
    files["/lists/download/raw_30s_audio_sha256_tars.txt"] = "".join(sums).encode()
    files["/lists/raw_30s.tsv"] = (jamendo_folder / "raw_30s.tsv").read_bytes()
    with serve(Site(files)) as site:
        yield site


def settings(site: Site, name: str, root: Path, *more: str) -> list[str]:
    addresses = [
        f"addresses.{key}={site.url}/{path}"
        for key, path in (("nsynth", "nsynth"), ("jamendo", "jamendo"), ("jamendo_lists", "lists"))
    ]
    return [f"data={name}", f"data.root={root}", *addresses, *HASTY, *more]


def download(*args: object) -> int:
    return main.task(settings(*args))  # type: ignore[attr-defined]


def test_nsynth_archives_are_downloaded(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "nsynth"
    site.faults = {path: ["503", "break 20000"] for path in site.files}
    assert download(site, "nsynth", root) == 0
    assert sorted(path.name for path in root.iterdir()) == sorted(Path(p).name for p in site.files if "nsynth" in p)
    assert len(list(data("nsynth", root).open().clips())) == 24
    output = capsys.readouterr()
    assert "3 of 3 files complete, 0 of them before" in output.out
    assert f"next: python -m pipeline.preprocess data=nsynth data.root={root}" in output.out.replace(" \\\n     ", "")
    assert "read to the end" in output.err


def test_jamendo_tars_are_downloaded(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "jamendo"
    assert download(site, "jamendo", root) == 0
    clips = list(data("jamendo", root, "data.segment_seconds=2").open().clips())
    assert len({clip.path for clip in clips}) == 8
    assert all("/audio/raw_30s_audio-0" in clip.path for clip in clips)


def test_selected_jamendo_folders_are_downloaded(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "jamendo"
    assert download(site, "jamendo", root, "folders=[1]") == 0
    assert [path.name for path in (root / "audio").iterdir()] == ["raw_30s_audio-01.tar"]
    assert list(data("jamendo", root).open().clips())
    with pytest.raises(InputError, match=r"folders=\[7\].*lists 2 tars"):
        download(site, "jamendo", root, "folders=[7]")


def test_complete_files_are_not_downloaded_again(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "jamendo"
    download(site, "jamendo", root)
    site.requests.clear()
    assert download(site, "jamendo", root) == 0
    assert site.requests == []
    assert "3 of 3 files complete, 3 of them before" in capsys.readouterr().out


def test_complete_files_are_verified_on_request(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "jamendo"
    download(site, "jamendo", root)
    assert download(site, "jamendo", root, "verify=true") == 0
    tar = root / "audio" / "raw_30s_audio-00.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    assert download(site, "jamendo", root, "verify=true") == 1
    assert "raw_30s_audio-00.tar: its SHA-256 is not" in capsys.readouterr().err


def test_one_failed_file_does_not_stop_the_others(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "jamendo"
    site.faults["/jamendo/audio/raw_30s_audio-00.tar"] = ["404"]
    assert download(site, "jamendo", root) == 1
    assert (root / "audio" / "raw_30s_audio-01.tar").exists()
    output = capsys.readouterr()
    assert "raw_30s_audio-00.tar: HTTP 404" in output.err
    assert "2 of 3 files complete" in output.out
    assert download(site, "jamendo", root) == 0


def test_tar_with_wrong_checksum_is_not_renamed(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "jamendo"
    site.files["/jamendo/audio/raw_30s_audio-00.tar"] += bytes(512)
    assert download(site, "jamendo", root) == 1
    assert [path.name for path in (root / "audio").iterdir()] == ["raw_30s_audio-01.tar"]


def test_killed_download_is_resumed(site: Site, tmp_path: Path) -> None:
    root, train = tmp_path / "nsynth", "/nsynth/nsynth-train.jsonwav.tar.gz"
    site.faults[train] = ["slow", "slow"]
    command = [
        sys.executable,
        "-m",
        "pipeline.download",
        *settings(site, "nsynth", root, "splits=[train]", "timeout=9"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    partial = root / ".partial.nsynth-train.jsonwav.tar.gz"
    for kill in (30_000, 60_000):
        run = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not partial.exists() or partial.stat().st_size < kill:
            assert run.poll() is None, "the download ended before it could be killed"
            time.sleep(0.01)
        run.kill()
        run.wait()
        assert not (root / "nsynth-train.jsonwav.tar.gz").exists()
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("read to the end")) == (0, 1)
    assert (root / "nsynth-train.jsonwav.tar.gz").read_bytes() == site.files[train]
    starts = [first for path, first in site.requests if path == train]
    assert starts == sorted(set(starts)), "each run resumes where the one before was killed"


def test_too_little_disk_space_is_an_early_error(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"data\.root=.* GB free, but the missing files need"):
        download(site, "nsynth", tmp_path / "nsynth")
    assert site.requests == []


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("notes", (), "data=notes cannot be downloaded: preprocess renders it"),
        ("folder", (), "data=folder cannot be downloaded"),
        ("nsynth", ("splits=[dev]",), r"splits=.*dev.*: expected a list, each train, valid or test"),
        ("jamendo", ("quality=best",), "quality=best: expected audio or audio-low"),
    ],
)
def test_invalid_download_settings_are_errors(site: Site, tmp_path: Path, name: str, more: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        download(site, name, tmp_path / "data", *more)


@pytest.mark.parametrize("name", ["nsynth", "jamendo"])
def test_missing_network_fails_at_once(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert download(Site({}, url="http://127.0.0.1:9"), name, tmp_path / name, "pause=1000") == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_default_addresses_are_the_publishers(tmp_path: Path) -> None:
    lists: list[RemoteFile] = []

    def get(remote: RemoteFile) -> None:
        lists.append(remote)
        remote.path.write_text(f"{'a' * 64} raw_30s_audio-low-99.tar\n")

    def remote_files(*overrides: str) -> list[RemoteFile]:
        settings = load_settings(DownloadSettings, overrides)
        return settings.data.remote_files(settings, get)

    metadata, tar = remote_files("data=jamendo", f"data.root={tmp_path}", "quality=audio-low", "folders=[99]")
    assert tar == RemoteFile(
        "https://cdn.freesound.org/mtg-jamendo/raw_30s/audio-low/raw_30s_audio-low-99.tar",
        tmp_path / "audio-low" / "raw_30s_audio-low-99.tar",
        "a" * 64,
    )
    base = "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data"
    assert lists[0].url == f"{base}/download/raw_30s_audio-low_sha256_tars.txt"
    assert metadata.url == f"{base}/raw_30s.tsv"
    (test,) = remote_files("splits=[test]")
    assert test.url == "http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-test.jsonwav.tar.gz"


@pytest.mark.parametrize("name", ["../../x-00.tar", "/tmp/x-00.tar", "a/x-00.tar", "..-00.tar"])
def test_list_cannot_name_files_outside_the_root(site: Site, tmp_path: Path, name: str) -> None:
    site.files["/lists/download/raw_30s_audio_sha256_tars.txt"] = f"{'0' * 64} {name}\n".encode()
    with pytest.raises(InputError, match="lists 0 tars"):
        download(site, "jamendo", tmp_path / "data")


@pytest.mark.parametrize("kept", [False, True])
def test_login_page_instead_of_list_is_deleted(site: Site, tmp_path: Path, kept: bool) -> None:
    """Whether the server sends it now or it is on disk from a run before: the next run downloads the list."""
    root, name = tmp_path / "jamendo", "raw_30s_audio_sha256_tars.txt"
    path, page = f"/lists/download/{name}", b"<html>sign in</html>"
    good, site.files[path] = site.files[path], page
    root.mkdir()
    if kept:
        (root / name).write_bytes(page)
    with pytest.raises(InputError, match=rf"{name} lists 0 tars.*addresses\.jamendo_lists"):
        download(site, "jamendo", root)
    assert not (root / name).exists()
    site.files[path] = good
    if kept:
        (root / name).write_bytes(page)
    assert download(site, "jamendo", root) == 0
