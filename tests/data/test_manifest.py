"""The manifest describes a dataset; a reader that does not match is refused with the setting that differs."""

import json
import math
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import ShardInfo

CODEC = {
    "name": "encodec_24khz",
    "weights": "ab" * 32,
    "sample_rate": 24000,
    "frame_rate": 75,
    "codebooks": 8,
    "codebook_size": 1024,
    "dtype": "float32",
}
EMBEDDER = {"name": "encodecmae_tiny", "weights": "cd" * 32, "sample_rate": 24000, "dim": 192}


def manifest() -> Manifest:
    shards = [
        ShardInfo(name=f"train-{i:06d}.tar", samples=100, frames=30000, bytes=1_000_000, sha256="ef" * 32)
        for i in range(9)
    ]
    skipped = [{"path": "a\nb.wav", "key": "a", "reason": "is empty"}]
    return Manifest(CODEC, EMBEDDER, {"name": "nsynth"}, {"train": shards, "valid": []}, 3, skipped)


def test_round_trip(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    assert Manifest.load(tmp_path) == manifest()
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_totals() -> None:
    assert manifest().num_samples("train") == 900
    assert manifest().hours("train") == pytest.approx(1.0)
    assert manifest().hours("valid") == manifest().hours("test") == 0
    assert manifest().codebooks == 8 and manifest().prompt_dim == 192


def test_same_manifest_gives_same_bytes(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    Manifest.load(tmp_path).save(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


def test_fewer_codebooks_are_accepted(tmp_path: Path) -> None:
    manifest().check_codec({**CODEC, "codebooks": 4}, 4)
    manifest().check_embedder(EMBEDDER)


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "encodec_embedded"), ("weights", "00" * 32), ("sample_rate", 48000), ("frame_rate", 50)],
)
def test_another_codec_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"codec\.{name} is .*, expected {value!r}"):
        manifest().check_codec({**CODEC, name: value}, 8)


def test_more_codebooks_than_stored_are_refused() -> None:
    with pytest.raises(InputError, match=r"codec\.codebooks=16.* have 8"):
        manifest().check_codec(CODEC, 16)


def test_another_embedder_is_refused() -> None:
    with pytest.raises(InputError, match=r"embedder\.dim is 192, expected 768"):
        manifest().check_embedder({**EMBEDDER, "dim": 768})


def test_missing_and_unfinished_datasets_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset at .*python -m pipeline.preprocess"):
        Manifest.load(tmp_path / "nowhere")
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(InputError, match="has not finished"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "{", "damaged"),
        (lambda m: "[]", "malformed"),
        (lambda m: json.dumps({**m, "format": 2}), "format 2"),
        (lambda m: json.dumps({k: v for k, v in m.items() if k != "codec"}), "malformed.*codec"),
        (lambda m: json.dumps({**m, "embedder": {"name": "x"}}), "malformed.*weights"),
        (lambda m: json.dumps({**m, "splits": {"train": {"shards": [{"name": "a.tar"}]}}}), "malformed.*samples"),
        (
            lambda m: json.dumps({**m, "splits": {"train": {"shards": [{"name": "../a.tar"}]}}}),
            "not a valid shard name",
        ),
        (lambda m: json.dumps({**m, "splits": []}), "malformed"),
    ],
)
def test_malformed_manifest_is_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    manifest().save(tmp_path)
    file = tmp_path / MANIFEST_NAME
    content = json.loads(file.read_text())
    del content["sha256"]  # as older versions wrote it
    file.write_text(change(content))
    with pytest.raises(InputError, match=message) as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("codec", "codebooks"), "8"), (("codec", "codebooks"), 0), (("codec", "codebooks"), 10**9),
        (("codec", "codebook_size"), 2**40), (("codec", "frame_rate"), 0), (("codec", "frame_rate"), math.nan),
        (("codec", "sample_rate"), None), (("codec", "weights"), 7), (("embedder", "dim"), -1),
        (("embedder", "dim"), 2.5), (("codec",), "abc"), (("silent",), "3"), (("splits", "train", "shards"), 5),
        (("splits", "train", "shards", 0, "samples"), -100), (("splits", "train", "shards", 0, "frames"), 1e4),
        (("splits", "train", "shards", 0, "bytes"), 10**30), (("splits", "train", "shards", 0, "samples"), 2**62),
        (("splits", "train", "shards", 0, "sha256"), "../../x"), (("splits", "train", "shards", 0, "sha256"), None),
        (("set_aside",), [1]), (("splits", "train", "shards", 0, "name"), "a\0.tar"),
        (("splits", "train", "shards", 0, "name"), "pipe:touch x/y.tar"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(tmp_path: Path, keys: tuple, value: object) -> None:
    manifest().save(tmp_path)
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    inner = content
    for name in keys[:-1]:
        inner = inner[name]
    inner[keys[-1]] = value
    del content["sha256"]  # as older versions wrote it
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is malformed") as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        Manifest.load(tmp_path / MANIFEST_NAME)
