"""A shard is an ordinary WebDataset tar with reproducible bytes, and damage to it is detected."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.data.shard import (
    BLOCK,
    Sample,
    ShardWriter,
    index_name,
    read_shard,
    shard_checksum,
    write_index,
)
from pipeline.data.storage import LocalStorage
from tests.helpers.shards import read_with_webdataset, scan_index


def sample(key: str, frames: int = 7, codebooks: int = 8, width: int = 5) -> Sample:
    rng = np.random.default_rng(sum(key.encode()) + frames)
    codes = rng.integers(0, 1024, (codebooks, frames)).astype(np.uint16)
    info = {
        "path": f"audio/{key}é\n.wav",
        "start": 0.0,
        "duration": frames / 75,
        "split": "train",
        "labels": {"pitch": 60},
    }
    return Sample(key, codes, rng.standard_normal(width).astype(np.float16), info)


def write(folder: Path, samples: list[Sample], name: str = "train-000000.tar") -> Path:
    with ShardWriter(folder, name) as shard:
        for one in samples:
            shard.add(one)
    return folder / name


def assert_same(actual: list[Sample], expected: list[Sample]) -> None:
    assert [f.key for f in actual] == [e.key for e in expected]
    for f, e in zip(actual, expected, strict=True):
        assert f.codes.dtype == np.uint16 and np.array_equal(f.codes, e.codes)
        assert f.prompt.dtype == np.float16 and np.array_equal(f.prompt, e.prompt)
        assert f.metadata == e.metadata


@settings(max_examples=25)
@given(
    frames=st.lists(st.integers(0, 700), max_size=6),
    codebooks=st.integers(1, 32),
    width=st.integers(1, 1024),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, frames, codebooks, width) -> None:
    """The index, the tar headers and webdataset give the same samples in the same order."""
    samples = [sample(f"clip_{i}", t, codebooks, width) for i, t in enumerate(frames)]
    path = write(tmp_path_factory.mktemp("shard"), samples)
    assert_same(list(read_shard(path)), samples)
    index = np.load(path.with_name(index_name(path.name)))
    assert np.array_equal(index[1:], scan_index(path))
    assert index[0, 1] == np.uint64(xxhash.xxh3_64_intdigest(path.read_bytes())).astype(np.int64)
    path.with_name(index_name(path.name)).unlink()
    assert_same(list(read_shard(path)), samples)
    assert_same(list(read_with_webdataset(path)), samples)


def test_webdataset_decodes_shards(tmp_path: Path) -> None:
    samples = [sample(f"clip_{i}") for i in range(5)]
    path = write(tmp_path, samples)
    actual = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert [f["__key__"] for f in actual] == [s.key for s in samples]
    assert all(np.array_equal(f["codes.npy"], s.codes) for f, s in zip(actual, samples, strict=True))
    assert all(f["json"] == s.metadata for f, s in zip(actual, samples, strict=True))


def test_members_are_plain_files_without_times_or_owners(tmp_path: Path) -> None:
    path = write(tmp_path, [sample("a" * 80)])
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{'a' * 80}.{end}" for end in ("codes.npy", "prompt.npy", "json")]
    assert all(m.isreg() and (m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in members)
    assert not any(m.pax_headers for m in members)


def test_same_samples_give_same_bytes(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "again").mkdir()
    samples = [sample(f"clip_{i}", 7 + i) for i in range(3)]
    first = write(tmp_path, samples)
    with ShardWriter(tmp_path / "again", first.name) as shard:
        for one in samples:
            shard.add(one)
    assert (tmp_path / "again" / first.name).read_bytes() == first.read_bytes()
    assert shard.info.samples == 3 and shard.info.frames == 7 + 8 + 9
    assert shard.info.bytes == first.stat().st_size
    assert shard.info.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()


def test_failed_write_leaves_no_shard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "train-000000.tar") as shard:
        shard.add(sample("a"))
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []


def test_rewritten_shard_has_no_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, [sample("a", 7)])
    monkeypatch.setattr("pipeline.data.shard.write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, [sample("b", 9), sample("c", 9)])
    assert [s.key for s in read_shard(path)] == ["b", "c"]


@pytest.mark.parametrize("key", ["a.b", "../a", "a/b", "", "a" * 81, "é", "taken"])
def test_invalid_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"), ShardWriter(tmp_path, "train-000000.tar") as shard:
        shard.add(sample("taken"))
        shard.add(Sample(key, *[getattr(sample("x"), field) for field in ("codes", "prompt", "metadata")]))


def test_arrays_of_another_type_are_refused(tmp_path: Path) -> None:
    good = sample("a")
    for bad in (
        Sample("a", good.codes.astype(np.int64), good.prompt, {}),
        Sample("a", good.codes[0], good.prompt, {}),
        Sample("a", good.codes, good.prompt.astype(np.float32), {}),
    ):
        with pytest.raises(ValueError, match="uint16"), ShardWriter(tmp_path, "train-000000.tar") as shard:
            shard.add(bad)


@pytest.mark.parametrize("with_index", [True, False])
def test_truncated_shard_is_refused(tmp_path: Path, with_index: bool) -> None:
    """Also between two members, where webdataset silently yields a partial sample."""
    path = write(tmp_path, [sample(f"clip_{i}") for i in range(3)])
    whole = path.read_bytes()
    if not with_index:
        path.with_name(index_name(path.name)).unlink()
    for blocks in range(0, len(whole) // BLOCK - 1):
        path.write_bytes(whole[: blocks * BLOCK])
        with pytest.raises(InputError, match="truncated"):
            list(read_shard(path))
    path.write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(InputError, match="truncated"):
        list(read_shard(path))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar as another tool would."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.5  # a fraction of a second makes an extended header
            tar.addfile(info, io.BytesIO(data))
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def triple(one: Sample) -> list[tuple[str, bytes]]:
    return [
        (f"{one.key}.codes.npy", npy(one.codes)),
        (f"{one.key}.prompt.npy", npy(one.prompt)),
        (f"{one.key}.json", json.dumps(one.metadata).encode()),
    ]


def test_shard_written_by_webdataset_is_read(tmp_path: Path) -> None:
    samples = [sample(f"clip_{i}") for i in range(4)]
    path = tmp_path / "train-000000.tar"
    with wds.TarWriter(str(path)) as tar:
        for s in samples:
            tar.write(
                {"__key__": s.key, "codes.npy": s.codes, "prompt.npy": s.prompt, "json": s.metadata, "txt": "more"}
            )
    assert_same(list(read_shard(path)), samples)
    assert_same(list(read_with_webdataset(path)), samples)


def test_member_order_and_folders_do_not_matter(tmp_path: Path) -> None:
    samples = [sample("a"), sample("b")]
    members = [(f"sub/{name}", data) for s in samples for name, data in reversed(triple(s))]
    actual = list(read_shard(write_tar(tmp_path / "x.tar", members)))
    assert [f.key for f in actual] == ["sub/a", "sub/b"]
    assert np.array_equal(actual[1].codes, samples[1].codes)


@pytest.mark.parametrize("missing", [0, 1, 2, 3, 5])
def test_incomplete_sample_is_named(tmp_path: Path, missing: int) -> None:
    members = triple(sample("a")) + triple(sample("b"))
    del members[missing]
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=r"1 samples lack members: [ab] \(no (codes.npy|prompt.npy|json)\)"):
        list(read_shard(path))


@pytest.mark.parametrize("name", ["/etc/a.json", "../a.json", "x/../../a.json"])
def test_member_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "x.tar", [*triple(sample("a")), (name, b"{}")])
    with pytest.raises(InputError, match="outside its folder"):
        list(read_shard(path))


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match="not a plain file"):
        list(read_shard(path))


@pytest.mark.parametrize(
    "codes",
    [np.zeros((8, 7), np.int64), np.zeros(7, np.uint16), np.asfortranarray(np.ones((8, 7), np.uint16)), np.array([{}])],
    ids=["int64", "flat", "fortran", "pickled"],
)
def test_other_array_formats_are_refused_not_unpickled(tmp_path: Path, codes: np.ndarray) -> None:
    members = [("a.codes.npy", npy(codes)), *triple(sample("a"))[1:]]
    with pytest.raises(InputError, match="uint16"):
        list(read_shard(write_tar(tmp_path / "x.tar", members)))


def test_array_larger_than_its_member_is_refused(tmp_path: Path) -> None:
    members = triple(sample("a"))
    members[0] = (members[0][0], members[0][1].replace(b"(8, 7)", b"(9, 7)"))
    with pytest.raises(InputError, match="does not fit its member"):
        list(read_shard(write_tar(tmp_path / "x.tar", members)))


def test_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [sample("a", 700), sample("b", 9)])
    other = write(tmp_path, [sample("a", 9), sample("b", 9)], "train-000001.tar")
    other.with_name(index_name(other.name)).replace(path.with_name(index_name(path.name)))
    with pytest.raises(InputError, match="its index is of another"):
        list(read_shard(path))
    path.with_name(index_name(path.name)).write_bytes(b"rubbish")
    with pytest.raises(InputError, match="damaged"):
        list(read_shard(path))


def test_damaged_headers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [sample("a")])
    path.with_name(index_name(path.name)).unlink()
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="no tar header at byte 0"):
        list(read_shard(path))


def with_header(tar: bytes, name: str, start: int, field: bytes) -> bytes:
    """Return a tar with one field of a member's header changed and the checksum of the header corrected."""
    changed, at = bytearray(tar), tar.index(name.encode() + b"\0")
    changed[at + start : at + start + len(field)] = field
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    return bytes(changed)


@pytest.mark.parametrize("size", [b"-1000      \0", b"-0000000777\0", b"0o000001000\0", b"1_000      \0"])
def test_negative_member_size_is_refused(tmp_path: Path, size: bytes) -> None:
    """Read as a negative number, it would lead to the same header forever."""
    path = write(tmp_path, [sample("a"), sample("b")])
    path.write_bytes(with_header(path.read_bytes(), "b.codes.npy", 124, size))
    with pytest.raises(InputError, match="no tar header at byte"):
        scan_index(path)


@pytest.mark.parametrize("text", [b"[" * 5000, b'"text"', b"[1]", b"7", b"\xff"])
def test_metadata_must_be_a_json_object(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path, [sample("a")])
    whole = path.read_bytes()
    at = whole.index(b"a.json\0")
    body = text.ljust(5120)
    path.write_bytes(with_header(whole[: at + BLOCK], "a.json", 124, b"%011o\0" % len(body)) + body + bytes(1024))
    (tmp_path / index_name(path.name)).unlink()
    with pytest.raises(InputError, match=r"train-000000\.tar: a\.json is"):
        list(read_shard(path))


@pytest.mark.parametrize("shape", ["(8589934592, 8589934593)", "(9223372036854775807, 9)", "(8, 99999999999999999999)"])
def test_overflowing_shape_is_refused(tmp_path: Path, shape: str) -> None:
    path = write(tmp_path, [sample("a")])
    header = path.read_bytes()
    path.write_bytes(header.replace(b"(8, 7), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode(), 1))
    assert len(path.read_bytes()) == len(header) and path.read_bytes() != header
    path.with_name(index_name(path.name)).unlink()
    for read in (lambda: list(read_shard(path)), lambda: scan_index(path)):
        with pytest.raises(InputError, match="does not fit its member"):
            read()


@pytest.mark.parametrize("row", [(2**62, 1), (-1, 1), (640, 2**62), (640, -5), (2**63 - 1, 2**63 - 1)])
def test_overflowing_index_is_refused(tmp_path: Path, row: tuple[int, int]) -> None:
    """Sums of its values would overflow to small numbers."""
    path, store = write(tmp_path, [sample("a"), sample("b")]), LocalStorage(tmp_path)
    index = np.load(tmp_path / index_name(path.name))[1:]
    index[1, :2] = row
    write_index(store, path.name, index, shard_checksum(store.open(path.name)))
    with pytest.raises(InputError, match=r"index\.npy is damaged: it points outside its shard"):
        list(read_shard(tmp_path / "train-000000.tar"))
