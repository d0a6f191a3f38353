"""Storage of datasets: local folders, a real S3 server, a real web server, and memory."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter, read_shard
from pipeline.data.storage import LocalStorage, RemoteStorage, open_storage
from pipeline.data.verify import verify
from tests.helpers.preprocess_runs import contents, make, tones
from tests.helpers.shards import read_with_webdataset

SETTINGS = ("data.valid=0.2", "data.test=0", "data.min_seconds=0.01")


@pytest.fixture(params=["local", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


def test_writes_are_atomic(address: str) -> None:
    store = open_storage(address)
    assert store.sizes() == {}
    store.check_writable()
    assert store.sizes() == {}
    with store.open_atomic("b.bin") as file:
        file.write(b"12345")
        assert "b.bin" not in store.sizes()
    with store.open_atomic("a.bin") as file:
        file.write(b"1")
    with pytest.raises(RuntimeError), store.open_atomic("a.bin") as file:
        file.write(b"half of someth")
        raise RuntimeError
    assert list(store.sizes().items()) == [("a.bin", 1), ("b.bin", 5)]
    assert store.read("b.bin") == store.open("b.bin").read(0, 5) == b"12345"
    assert store.read_many(["a.bin", "b.bin"]) == {"a.bin": b"1", "b.bin": b"12345"}
    assert store.read_many(["a.bin", "c.bin"]) == {"a.bin": b"1"} and store.read_many([]) == {}
    with store.open_atomic("a.bin") as file:
        file.write(b"other")
    assert store.size("a.bin") == 5 and store.size("c.bin") is None
    store.remove("a.bin")
    store.remove("a.bin")
    assert list(store.sizes()) == ["b.bin"]
    for missing in (lambda: store.read("a.bin"), lambda: store.open("a.bin")):
        with pytest.raises(FileNotFoundError):
            missing()


def test_file_deleted_during_listing_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write test of another process does that."""
    for name in ("a.bin", "b.bin", "c.bin"):
        (tmp_path / name).write_bytes(b"12")
    scandir = os.scandir

    def deleted_before_stat(folder: Path) -> contextlib.AbstractContextManager[list[os.DirEntry[str]]]:
        with scandir(folder) as listing:
            entries = list(listing)
        (tmp_path / "b.bin").unlink(missing_ok=True)
        return contextlib.nullcontext(entries)

    monkeypatch.setattr("pipeline.data.storage.os.scandir", deleted_before_stat)
    assert LocalStorage(tmp_path).sizes() == {"a.bin": 2, "c.bin": 2}


@pytest.mark.parametrize("address", ["memory"], indirect=True)
def test_simultaneous_write_tests_do_not_fail(address: str) -> None:
    """One process removes the test file that another has just written."""
    store = open_storage(address)
    assert isinstance(store, RemoteStorage)
    write = store.fs.pipe_file

    def write_and_lose(path: str, value: bytes) -> None:
        write(path, value)
        store.fs.rm_file(path)

    store.fs.pipe_file = write_and_lose
    try:
        store.check_writable()
    finally:
        store.fs.pipe_file = write


def test_shard_is_equal_in_every_storage(address: str, tmp_path: Path) -> None:
    sample = Sample("a", np.ones((2, 3), np.uint16), np.ones(4, np.float16), {"path": "a.wav"})
    written = []
    for folder in (address, str(tmp_path / "here")):
        open_storage(folder).check_writable()
        with ShardWriter(folder, "train-000000.tar") as shard:
            shard.add(sample)
        written.append((shard.info, open_storage(folder).read("train-000000.tar")))
        for reader in (read_shard, read_with_webdataset):
            assert [s.key for s in reader(f"{folder}/train-000000.tar")] == ["a"]
    assert written[0] == written[1]


def test_preprocess_resume_and_verify_on_s3(bucket: str, tmp_path: Path) -> None:
    root, local, remote = tones(tmp_path / "in", 14), tmp_path / "here", f"{bucket}/cache"
    make("folder", root, local, *SETTINGS)
    assert make("folder", root, remote, *SETTINGS, "part=2/2") == 0
    with pytest.raises(InputError, match="has not finished"):
        Manifest.load(remote)
    assert make("folder", root, remote, *SETTINGS) == 0
    store = open_storage(remote)
    assert {name: store.read(name) for name in store.sizes()} == contents(local)
    assert [*verify(store)] == []
    with pytest.raises(InputError, match=r"codec\.codebooks"):
        make("folder", root, remote, *SETTINGS, "codec.codebooks=3")
    store.remove("train-000000.tar")
    assert [*verify(store)] == ["train-000000.tar: missing"]
    assert make("folder", root, remote, *SETTINGS) == 0
    assert {name: store.read(name) for name in store.sizes()} == contents(local)


def test_missing_bucket_is_refused(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write to s3://nobody-s/cache"):
        make("folder", tones(tmp_path / "in", 1), "s3://nobody-s/cache", *SETTINGS)


def test_unreachable_server_is_reported_in_one_line() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(InputError, match=r"cannot read http://127\.0\.0\.1:9/x/manifest\.json") as caught:
        Manifest.load("http://127.0.0.1:9/x")
    assert "\n" not in str(caught.value)


def test_dataset_is_read_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    out = tmp_path / "out"
    make("folder", tones(tmp_path / "in", 8), out, *SETTINGS)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert Manifest.load(address) == Manifest.load(out)
        assert [s.key for s in read_shard(f"{address}/train-000000.tar")] == [
            s.key for s in read_shard(out / "train-000000.tar")
        ]
        assert [*verify(open_storage(address))] == []
        with pytest.raises(InputError, match="there is no dataset at http"):
            Manifest.load(f"{address}/nowhere")
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        "nonsense://x", "pipe://rm -rf", "pipe:cat x", "zip:///no.zip", "zip://x::/no/such.zip", "tar://x::/no/such.tar",
        "zip://x::http://127.0.0.1:9/a.zip", "ftp://me:secret@127.0.0.1:9/x", "ssh://127.0.0.1:9/x", "reference://x",
    ],
)  # fmt: skip
def test_invalid_address_is_refused(address: str) -> None:
    """Each backend has its own exceptions, some already in its constructor."""
    with pytest.raises(InputError, match="cannot open|no dataset") as caught:
        Manifest.load(address)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_local_paths_do_not_use_fsspec(tmp_path: Path) -> None:
    assert isinstance(open_storage(tmp_path), LocalStorage) and isinstance(
        open_storage(f"file://{tmp_path}"), LocalStorage
    )
    assert isinstance(open_storage("memory://x"), RemoteStorage)
    assert open_storage(f"file://{tmp_path}").display_path() == str(tmp_path)
