"""`python -m pipeline.preprocess data=folder` on folders as people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.cache.manifest import Manifest
from pipeline.cache.shard import read_shard
from tests.build_caches import make

ALL_TRAIN = ("data.valid=0", "data.test=0")


def test_a_broken_file_of_many_clips_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The screen counts and names files, at least one of each kind; the manifest names every clip."""
    root = tmp_path / "in"
    root.mkdir()
    wav = np.full(24_000, 0.1, np.float32)
    soundfile.write(root / "good.wav", wav, 24_000)
    wav[::100] = np.nan
    for number, name in enumerate("abcdef"):
        wav[number + 1] = 0.5
        soundfile.write(root / f"{name} not finite.wav", wav, 24_000, subtype="FLOAT")
    (root / "z empty.wav").write_bytes(b"")
    cuts = ("data.segment_seconds=0.25", "data.shortest_seconds=0.1")
    assert make("folder", root, tmp_path / "out", *ALL_TRAIN, *cuts) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("skipped: ")]
    assert lines[first] == "skipped: 7 inputs (6 not finite, 1 empty); manifest.json names them all"
    named = [line for line in lines[first + 1 :] if line.startswith("  ")]
    assert named[0] == "  'a not finite.wav': not finite: there are NaN or infinite samples (4 clips)"
    assert [line.partition(":")[0] for line in named[1:]] == [
        "  'z empty.wav'",
        "  'b not finite.wav'",
        "  'c not finite.wav'",
        "  'd not finite.wav'",
    ]
    assert len(Manifest.load(tmp_path / "out").set_aside) == 25


def test_a_short_file_is_a_clip_and_a_short_rest_is_not(tmp_path: Path) -> None:
    """`data.shortest_seconds` is about the last piece of a recording, not about whole recordings."""
    root = tmp_path / "in"
    root.mkdir()
    for name, seconds in (("short", 0.05), ("rest", 0.45)):
        tone = np.sin(np.arange(round(24_000 * seconds)) / 9)
        soundfile.write(root / f"{name}.wav", 0.3 * tone, 24_000)
    for cuts, clips in (("null", 2), ("0.2", 3)):
        out = tmp_path / f"out-{cuts}"
        assert make("folder", root, out, *ALL_TRAIN, f"data.segment_seconds={cuts}") == 0
        assert Manifest.load(out).samples("train") == clips and not Manifest.load(out).set_aside


def test_copies_do_not_leak_between_splits(tmp_path: Path) -> None:
    """30 sounds as wav, copy, hard link, flac and mp3: each is in one split of the cache, and its samples once."""
    root, rng = tmp_path / "in", np.random.default_rng(0)
    root.mkdir()
    for number in range(30):
        wav = (9_000 * np.sin(np.cumsum(rng.uniform(0.02, 0.2, 2_400)))).astype(np.int16)
        soundfile.write(root / f"{number}.wav", wav, 24_000)
        shutil.copy(root / f"{number}.wav", root / f"b {number}.wav")
        (root / f"c {number}.wav").hardlink_to(root / f"{number}.wav")
        soundfile.write(root / f"d {number}.flac", wav, 24_000)
        soundfile.write(root / f"{number}.mp3", wav, 24_000)
    thirds = ("data.valid=0.33", "data.test=0.33", "samples_per_shard=60", "codec.codebooks=1")
    assert make("folder", root, tmp_path / "out", *thirds) == 0
    manifest, splits = Manifest.load(tmp_path / "out"), {}
    for split, shards in manifest.splits.items():
        for shard in shards:
            for sample in read_shard(tmp_path / "out" / shard.name):
                splits.setdefault("".join(filter(str.isdigit, sample.info["path"].partition(".")[0])), []).append(split)
    assert len(splits) == 30 and all(len(found) == 2 and len(set(found)) == 1 for found in splits.values())
    assert {found[0] for found in splits.values()} == {"train", "valid", "test"}
    reasons = [row["reason"] for row in manifest.set_aside]
    assert len(reasons) == 90 and all(reason.startswith("copy: the same sound as ") for reason in reasons)
