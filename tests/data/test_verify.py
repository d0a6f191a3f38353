"""`python -m pipeline.shards` reports every kind of damage, describes a dataset, and decodes random clips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample, ShardWriter, index_name, read_shard
from pipeline.data.stats import dataset_stats, perplexities
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.preprocess_runs import command, make, tones

TRAIN, VALID = "train-000000.tar", "valid-000000.tar"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact dataset."""
    folder = tmp_path_factory.mktemp("caches")
    root = tones(folder / "in", 20)
    make("folder", root, folder / "out", "data.valid=0.3", "data.test=0", "data.min_seconds=0.01")
    return folder / "out"


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "cache")
    return tmp_path / "cache"


def rewrite(cache: Path, name: str, change: Callable[[Sample], Sample]) -> None:
    """Change every sample of a shard, and write a manifest that matches."""
    samples = [change(sample) for sample in read_shard(cache / name)]
    with ShardWriter(cache, name) as shard:
        for sample in samples:
            shard.add(sample)
    manifest = Manifest.load(cache)
    splits = {
        split: [shard.info if info.name == name else info for info in infos] for split, infos in manifest.splits.items()
    }
    replace(manifest, splits=splits).save(cache)


def faults(cache: Path) -> str:
    return "\n".join(verify(LocalStorage(cache)))


@pytest.mark.parametrize("workers", [1, 2])
def test_intact_dataset_has_no_faults(intact: Path, workers: int) -> None:
    assert [*verify(LocalStorage(intact), workers)] == []


def test_flipped_bit_is_reported(cache: Path) -> None:
    whole = (cache / TRAIN).read_bytes()
    for offset in np.random.default_rng(0).integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[offset] ^= 1
        (cache / TRAIN).write_bytes(bytes(flipped))
        assert f"{TRAIN}: its bytes have changed since they were written" in faults(cache), offset


def test_missing_and_unknown_shards_are_reported(cache: Path) -> None:
    (cache / TRAIN).rename(cache / "train-000077.tar")
    assert f"{TRAIN}: missing" in faults(cache)
    assert "train-000077.tar: unknown" in faults(cache)


def test_truncated_shard_is_reported(cache: Path) -> None:
    (cache / TRAIN).write_bytes((cache / TRAIN).read_bytes()[:-4096])
    assert f"{TRAIN}: " in faults(cache) and "bytes where the manifest says" in faults(cache)
    assert "truncated" in faults(cache)


def test_missing_or_wrong_index_is_reported(cache: Path) -> None:
    index = cache / index_name(TRAIN)
    rows = np.load(index)
    rows[0, 1] += 1
    np.save(index, rows)
    assert f"{TRAIN}: its index {index.name} does not match it" in faults(cache)
    index.unlink()
    assert f"{TRAIN}: its index {index.name} is missing" in faults(cache)


def test_clip_in_two_splits_is_reported(cache: Path) -> None:
    """Both by its key and by its recording."""
    theirs = next(iter(read_shard(cache / TRAIN)))
    rewrite(cache, VALID, lambda sample: replace(sample, metadata={**sample.metadata, "path": theirs.metadata["path"]}))
    assert f"{VALID}: clips of {theirs.metadata['path']!r} are in valid and in train" in faults(cache)
    first = next(iter(read_shard(cache / VALID))).key
    rewrite(cache, VALID, lambda sample: replace(sample, key=theirs.key) if sample.key == first else sample)
    assert f"{VALID}: the key {theirs.key!r} is in {TRAIN} too" in faults(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, codes=s.codes + np.uint16(1024)), "codes of 1024 or more"),
        (lambda s: replace(s, codes=s.codes[:1]), "1 codebooks where the manifest says 2"),
        (lambda s: replace(s, prompt=s.prompt[:5]), "prompts of 5 values where the manifest says 192"),
        (lambda s: replace(s, prompt=s.prompt * np.float16(np.nan)), "prompts with NaN"),
        (lambda s: replace(s, metadata={**s.metadata, "split": "test"}), "of split 'test', in a shard of 'train'"),
        (
            lambda s: replace(s, metadata={**s.metadata, "duration": 9.0}),
            "a number of frames that does not match their duration",
        ),
        (lambda s: replace(s, metadata={}), "a number of frames that does not match their duration"),
    ],
)
def test_samples_that_differ_from_manifest_are_reported(cache: Path, change, message: str) -> None:
    rewrite(cache, TRAIN, change)
    assert message in faults(cache)


def test_wrong_counts_are_reported(cache: Path) -> None:
    manifest = Manifest.load(cache)
    wrong = [info.model_copy(update={"samples": info.samples + 1}) for info in manifest.splits["train"]]
    replace(manifest, splits={**manifest.splits, "train": wrong}).save(cache)
    assert f"{TRAIN}: " in faults(cache) and "samples of" in faults(cache)
    text = json.loads((cache / MANIFEST_NAME).read_text())
    text["splits"]["train"]["samples"] += 1
    del text["sha256"]  # as older versions wrote it
    (cache / MANIFEST_NAME).write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"splits\.train .*: its totals do not add up"):
        Manifest.load(cache)


def test_command_lists_faults_and_fails(cache: Path) -> None:
    good = command("pipeline.shards", "verify", str(cache), "workers=1")
    assert good.returncode == 0 and "no faults" in good.stdout
    (cache / TRAIN).unlink()
    bad = command("pipeline.shards", "verify", str(cache), "workers=1")
    assert bad.returncode == 1 and f"{TRAIN}: missing" in bad.stdout and "1 fault in" in bad.stdout
    for arguments, message in (
        (["verify", "/no/such/cache"], "no dataset at /no/such/cache"),
        (["inspect", str(cache)], "action=inspect: expected verify, describe, doctor, decode, index, merge or convert"),
        (["verify"], "shards"),
    ):
        refused = command("pipeline.shards", *arguments)
        assert refused.returncode == 2 and message in refused.stderr.splitlines()[-1]


def test_description(cache: Path) -> None:
    rewrite(cache, TRAIN, lambda s: replace(s, metadata={**s.metadata, "labels": {"pitch": 60, "tags": ["a", "b"]}}))
    for name in [path.name for path in cache.glob("*.tar")]:
        rewrite(cache, name, lambda s: replace(s, codes=np.stack([s.codes[0], np.full_like(s.codes[1], 7)])))
    manifest = Manifest.load(cache)
    count = manifest.splits["train"][0].samples
    text = "\n".join(dataset_stats(LocalStorage(cache)))
    assert f"pitch: 60 {count}" in text and f"tags: a {count}, b {count}" in text
    assert "at 1.5 kbit/s: 0.68 MB/hour" in text
    assert "2       1 of 1024          1.0   dead" in text and text.count("dead") == 1
    assert f"all      {sum(map(manifest.hours, manifest.splits)):9.2f}" in text


def test_perplexity_counts_equally_used_codes() -> None:
    usage = np.zeros((3, 1024), int)
    usage[0, :16], usage[1, 5], usage[2, :2] = 3, 100, [1, 3]
    assert perplexities(usage) == pytest.approx([16, 1, 2 ** (0.5 + 0.75 * np.log2(4 / 3))])


def test_random_clips_depend_on_seed_and_do_not_repeat(intact: Path) -> None:
    store, manifest = LocalStorage(intact), Manifest.load(intact)
    total = sum(map(manifest.num_samples, manifest.splits))
    everything = [sample.key for sample in sample_clips(store, manifest, 99, 0)]
    assert len(everything) == len(set(everything)) == total
    some = [sample.key for sample in sample_clips(store, manifest, 5, 1)]
    assert some == [sample.key for sample in sample_clips(store, manifest, 5, 1)] and len(set(some)) == 5
    assert {s.metadata["split"] for s in sample_clips(store, manifest, 99, 0, "valid")} == {"valid"}
    with pytest.raises(InputError, match="split=dev"):
        next(sample_clips(store, manifest, 1, 0, "dev"))


def test_random_clips_are_decoded(intact: Path, tmp_path: Path) -> None:
    done = command("pipeline.shards", "decode", str(intact), "clips=2", "seed=3", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("*.wav"))
    assert len(files) == 2
    for file in files:
        wav, rate = soundfile.read(file)
        assert rate == 24_000 and len(wav) == 9_600 and np.abs(wav).max() > 0.05


def test_description_refuses_invalid_codes(cache: Path) -> None:
    rewrite(cache, "train-000000.tar", lambda s: replace(s, codes=s.codes + 40_000))
    with pytest.raises(InputError, match=r"train-000000\.tar: .* does not match the manifest"):
        list(dataset_stats(LocalStorage(cache)))
