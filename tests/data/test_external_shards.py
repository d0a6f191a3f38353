"""External shards, without index and manifest and from other tar writers, are read by the same data loader."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardDataLoader, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.external_shards import ExternalSource
from pipeline.data.sampler import EpochSampler
from pipeline.data.shard import read_shard
from pipeline.data.shard_cache import LocalShardCache
from tests.helpers.caches import CODEC, EMBEDDER, K, P, clip_numbers
from tests.helpers.http_server import Web


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(folder: Path, name: str, clips: range, K: int = K, P: int = P, dtype: str = "<u2", least: int = 0) -> None:
    """Write a shard with the writer of webdataset: another order of members, and one additional member."""
    folder.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(folder / name)) as tar:
        for n in clips:
            T = 6 + n % 3
            tar.write(
                {
                    "__key__": f"some.where/clip-{n}".replace(".", "-"),
                    "json": json.dumps({"n": n}).encode(),
                    "codes.npy": npy((np.arange(K * T).reshape(K, T) + n + least).astype(dtype)),
                    "prompt.npy": npy(np.full(P, n, "<f2")),
                    "txt": b"a caption",
                }
            )


def write_keys(path: Path, keys: list[str], tar_format: int | None = None) -> Path:
    """Write a shard of samples with these keys, with the writer of webdataset or with tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = ("codes.npy", "prompt.npy", "json")
    contents = [[npy(np.full((K, 6), n, "<u2")), npy(np.full(P, n, "<f2")), b'{"n": %d}' % n] for n in range(len(keys))]
    if tar_format is None:
        with wds.TarWriter(str(path)) as tar:
            for key, content in zip(keys, contents, strict=True):
                tar.write({"__key__": key, **dict(zip(members, content, strict=True))})
        return path
    with tarfile.open(path, "w", format=tar_format) as tar:
        for key, content in zip(keys, contents, strict=True):
            for member, data in zip(members, content, strict=True):
                info = tarfile.TarInfo(f"{key}.{member}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def external_source(folder: Path, **codec: object) -> ExternalSource:
    identity = {name: value for name, value in CODEC.items() if name not in ("codebooks", "dtype")}
    return ExternalSource(
        {**identity, **codec}, {name: value for name, value in EMBEDDER.items() if name != "dim"}, folder
    )


@pytest.fixture
def external_shards(tmp_path: Path) -> Path:
    for shard in range(4):
        write(tmp_path / "web", f"train-{shard:03d}.tar", range(shard * 10, shard * 10 + 10))
    write(tmp_path / "web", "val-0.tar", range(90, 97))
    return tmp_path / "web"


def clips_of(split: ShardedDataset) -> list[int]:
    return sorted(n for batch in iter_once(split, 4) for n in clip_numbers(batch))


def test_folder_of_external_shards(external_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Splits come from names; codebooks, prompt dimensions, clips and frames from one scan."""
    source = external_source(tmp_path / "kept")
    with caplog.at_level(logging.INFO):
        train, val = (ShardedDataset(external_shards, name, external=source) for name in ("train", "val"))
    assert caplog.text.count("scanning 5 shards") == 1
    assert (train.manifest.codebooks, train.manifest.prompt_dim, train.manifest.num_frames("val")) == (K, P, 48)
    train.manifest.check_codec(CODEC, K)
    assert clips_of(train) == list(range(40)) and clips_of(val) == list(range(90, 97))
    assert train.lengths().tolist() == [6 + n % 3 for n in range(40)]
    stream = ShardDataLoader([train], EpochSampler(train.clips_per_shard, 0), batch_size=8, num_threads=0)
    for batch in itertools.islice(stream.batches(), 5):
        for codes, frames, n in zip(batch.codes, batch.frames.tolist(), clip_numbers(batch), strict=True):
            assert frames == 6 + n % 3 and (codes[:, :frames].numpy().ravel() == np.arange(K * frames) + n).all()
    assert {path.name for path in external_shards.iterdir()} == {f"train-00{n}.tar" for n in range(4)} | {"val-0.tar"}


@pytest.mark.parametrize(
    ("pattern", "clips"),
    [("train-*.tar", 40), ("train-{000..002}.tar", 30), ("{train,val}-00[13].tar", 20), ("train-003.tar", 10)],
)
def test_glob_selects_shards(external_shards: Path, tmp_path: Path, pattern: str, clips: int) -> None:
    assert (
        len(
            clips_of(
                ShardedDataset(f"{external_shards}/{pattern}", "train", external=external_source(tmp_path / "kept"))
            )
        )
        == clips
    )


def test_remote_external_shards_are_cached(web: Web, tmp_path: Path) -> None:
    for shard in range(3):
        write(web.folder, f"train-{shard:03d}.tar", range(shard * 10, shard * 10 + 10))
    copies, source = LocalShardCache(tmp_path / "copies", 0.1), external_source(tmp_path / "copies")
    address = f"{web.address}/train-{{000..002}}.tar"
    for _ in range(2):
        assert clips_of(ShardedDataset(address, "train", shard_cache=copies, external=source)) == list(range(30))
    assert {web.requests[f"train-{n:03d}.tar"] for n in range(3)} == {2}  # scanned, and cached


def test_changed_shards_are_scanned_again(external_shards: Path, tmp_path: Path) -> None:
    source = external_source(tmp_path / "kept")
    assert len(ShardedDataset(external_shards, "train", external=source)) == 40
    write(external_shards, "train-004.tar", range(40, 45))
    assert len(ShardedDataset(external_shards, "train", external=source)) == 45


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"K": K + 1},
            r"train-004.tar: some-where/clip-50 has 4 codebooks and a prompt of 5 values.* have 3 codebooks and",
        ),
        ({"P": P + 1}, r"train-004.tar: some-where/clip-50 has 3 codebooks and a prompt of 6 values"),
        ({"dtype": "<i8"}, r"train-004.tar: some-where/clip-50: expected codes of uint16 \[K, T\]"),
        ({"least": 1024}, r"train-004.tar: some-where/clip-50 has codes of 1024 or more"),
    ],
)
def test_arrays_of_another_format_are_refused(external_shards: Path, tmp_path: Path, how: dict, message: str) -> None:
    write(external_shards, "train-004.tar", range(50, 52), **how)
    with pytest.raises(InputError, match=message):
        ShardedDataset(external_shards, "train", external=external_source(tmp_path / "kept"))


def test_missing_shards_and_identities_are_refused(external_shards: Path, tmp_path: Path) -> None:
    source = external_source(tmp_path / "kept")
    with pytest.raises(InputError, match="there are no shards at"):
        ShardedDataset(tmp_path / "nowhere", "train", external=source)
    with pytest.raises(InputError, match="train-004.tar does not exist"):
        ShardedDataset(f"{external_shards}/train-{{000..009}}.tar", "train", external=source)
    with pytest.raises(InputError, match=r"name their codec and embedder in data.external"):
        ShardedDataset(f"{external_shards}/train-*.tar", "train")
    write(tmp_path / "numbered", "0001.tar", range(3))
    assert len(ShardedDataset(tmp_path / "numbered", "train", external=source)) == 3  # no name before the number
    with pytest.raises(InputError, match=r"data.external.codec needs .*: frame_rate is missing"):
        ExternalSource({n: v for n, v in source.codec.items() if n != "frame_rate"}, source.embedder, tmp_path)


ODD_KEYS = ["Björk 01", "日本/曲 1", "plain-1", "what?", "x" * 90, "y" * 99, "z" * 300, "v1.2/clip", "?" * 120]


@pytest.mark.parametrize("tar_format", [None, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_non_ascii_keys_are_read(tmp_path: Path, tar_format: int | None) -> None:
    """Pax records, which webdataset writes for names that are long or not ASCII, and GNU long names."""
    path = write_keys(tmp_path / "web" / "train-0.tar", ODD_KEYS, tar_format)
    split = ShardedDataset(tmp_path / "web", "train", external=external_source(tmp_path / "kept"))
    assert clips_of(split) == list(range(len(ODD_KEYS)))
    assert [sample.key for sample in read_shard(path)] == ODD_KEYS
    assert [sample["__key__"] for sample in wds.WebDataset(str(path), shardshuffle=False)] == ODD_KEYS


def test_key_with_a_dot_is_named(tmp_path: Path) -> None:
    write_keys(tmp_path / "web" / "train-0.tar", ["good", "a song.v2", "a song.v3"])
    with pytest.raises(InputError, match=r"train-0\.tar: the key 'a song\.v2' has a dot.*keys without dots"):
        ShardedDataset(tmp_path / "web", "train", external=external_source(tmp_path / "kept"))


@pytest.mark.parametrize("pattern", ["", "/*", "/train-0.tar.gz", "/train-{0..0}.tar.gz"])
def test_compressed_tar_is_named(tmp_path: Path, pattern: str) -> None:
    plain = write_keys(tmp_path / "plain.tar", ["a"])
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "train-0.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(InputError, match=r"train-0\.tar\.gz is a compressed tar.*gunzip"):
        ShardedDataset(f"{tmp_path}/web{pattern}", "train", external=external_source(tmp_path / "kept"))
    (tmp_path / "web" / "train-1.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(InputError, match=r"train-1\.tar is compressed with gzip.*gunzip"):
        ShardedDataset(f"{tmp_path}/web/train-1.tar", "train", external=external_source(tmp_path / "kept"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("path=../out.codes.npy", "points outside its folder"),
        ("path=/etc/out.codes.npy", "points outside its folder"),
        ("size=99999999", "truncated"),
        ("size=-512", "damaged: a member has '-512' bytes"),
    ],
)
def test_wrong_pax_record_is_refused(tmp_path: Path, record: str, message: str) -> None:
    """Values in an extended header are checked like those in a plain header."""
    path = tmp_path / "train-0.tar"
    name, _, value = record.partition("=")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.codes.npy")
        info.pax_headers, info.size = {name: value}, 4
        tar.addfile(info, io.BytesIO(b"abcd"))
    with pytest.raises(InputError, match=message):
        list(read_shard(path))
