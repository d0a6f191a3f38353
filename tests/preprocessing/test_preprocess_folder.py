"""`python -m pipeline.preprocess data=folder` on realistic folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.shard import read_shard
from tests.helpers.preprocess_runs import make

ALL_TRAIN = ("data.valid=0", "data.test=0")


def test_broken_file_of_many_clips_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output counts files and names at least one of each kind; the manifest lists every clip."""
    root = tmp_path / "in"
    root.mkdir()
    wav = np.sin(np.arange(24_000) / 9).astype(np.float32)
    soundfile.write(root / "good.wav", wav, 24_000)
    wav[::100] = np.nan
    for number, name in enumerate("abcdef"):
        wav[number + 1] = 0.5
        soundfile.write(root / f"{name} not finite.wav", wav, 24_000, subtype="FLOAT")
    (root / "z empty.wav").write_bytes(b"")
    cuts = ("data.segment_seconds=0.25", "data.min_seconds=0.1")
    assert make("folder", root, tmp_path / "out", *ALL_TRAIN, *cuts) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("skipped: ")]
    assert lines[first] == "skipped: 7 inputs (6 not finite, 1 empty); manifest.json names them all"
    named = [line for line in lines[first + 1 :] if line.startswith("  '")]
    assert named[0] == "  'a not finite.wav': not finite: there are NaN or infinite samples (4 clips)"
    assert [line.partition(":")[0] for line in named[1:]] == [
        "  'z empty.wav'",
        "  'b not finite.wav'",
        "  'c not finite.wav'",
        "  'd not finite.wav'",
    ]
    assert len(Manifest.load(tmp_path / "out").skipped) == 25


def test_short_file_is_kept_short_rest_is_not(tmp_path: Path) -> None:
    """`data.min_seconds` is about the last piece of a recording, not about whole recordings."""
    root = tmp_path / "in"
    root.mkdir()
    for name, seconds in (("short", 0.05), ("rest", 0.45)):
        tone = np.sin(np.arange(round(24_000 * seconds)) / 9)
        soundfile.write(root / f"{name}.wav", 0.3 * tone, 24_000)
    for cuts, clips in (("null", 2), ("0.2", 3)):
        out = tmp_path / f"out-{cuts}"
        assert make("folder", root, out, *ALL_TRAIN, f"data.segment_seconds={cuts}") == 0
        assert Manifest.load(out).num_samples("train") == clips and not Manifest.load(out).skipped


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
                splits.setdefault("".join(filter(str.isdigit, sample.metadata["path"].partition(".")[0])), []).append(
                    split
                )
    assert len(splits) == 30 and all(
        len(split_list) == 2 and len(set(split_list)) == 1 for split_list in splits.values()
    )
    assert {split_list[0] for split_list in splits.values()} == {"train", "valid", "test"}
    reasons = [row["reason"] for row in manifest.skipped]
    assert len(reasons) == 90 and all(reason.startswith("duplicate: the same audio as ") for reason in reasons)


@pytest.fixture(scope="module")
def bad_amplitudes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good sound, one that exceeds full scale by 1 dB, one in the scale of int16, one with a spike."""
    root, tone = tmp_path_factory.mktemp("amplitude") / "in", np.sin(np.arange(9_600) / 9).astype(np.float32)
    root.mkdir()
    for name, gain in (("good", 0.5), ("over", 1.12), ("int16", 32_768.0), ("spike", 0.2)):
        tone[100] = 5e28 if name == "spike" else 0
        soundfile.write(root / f"{name}.wav", gain * tone, 24_000, subtype="FLOAT")
    return root


def prompts_and_reasons(root: Path, out: Path, *settings: str) -> tuple[dict[str, np.ndarray], Manifest]:
    assert make("folder", root, out, *ALL_TRAIN, *settings) == 0
    result = read_shard(out / "train-000000.tar")
    return {Path(sample.metadata["path"]).stem: sample.prompt for sample in result}, Manifest.load(out)


def test_peaks_above_full_scale_are_scaled(
    bad_amplitudes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default. Overshoot of a decibel is normal; a single spike makes a clip unusable, and spoils no other."""
    prompts, manifest = prompts_and_reasons(bad_amplitudes, tmp_path / "out")
    assert set(prompts) == {"good", "over", "int16"} and manifest.data["bad_amplitude"] == "scale"
    ((scaled, reason),) = [(row["path"], row["reason"]) for row in manifest.adjusted]
    assert scaled == "int16.wav"
    assert reason == "above full scale: its peak is 32,768, where full scale is 1; scaled to full scale"
    (spike,) = manifest.skipped
    assert spike["path"] == "spike.wav" and spike["reason"].startswith("above full scale: its peak is 1e+28")
    printed = capsys.readouterr().out
    assert "adjusted: 1 inputs (1 above full scale); manifest.json names them all" in printed
    assert "skipped: 1 inputs (1 above full scale)" in printed
    similarity = float(np.dot(*(p / np.linalg.norm(p.astype(float)) for p in (prompts["int16"], prompts["over"]))))
    assert similarity > 0.99, "the scaled sound is the same sound"
    assert make("folder", bad_amplitudes, tmp_path / "out", *ALL_TRAIN) == 0
    assert "adjusted: 1 inputs" in capsys.readouterr().out, "a second run names it too"


def test_bad_amplitude_policies(bad_amplitudes: Path, tmp_path: Path) -> None:
    prompts, manifest = prompts_and_reasons(bad_amplitudes, tmp_path / "skip", "bad_amplitude=skip")
    assert set(prompts) == {"good", "over"} and not manifest.adjusted
    reasons = {row["path"]: row["reason"] for row in manifest.skipped}
    assert reasons["int16.wav"].endswith("where full scale is 1; bad_amplitude=scale uses it")
    prompts, manifest = prompts_and_reasons(bad_amplitudes, tmp_path / "keep", "bad_amplitude=keep")
    assert set(prompts) >= {"good", "over", "int16"} and not manifest.adjusted
    with pytest.raises(InputError, match=r"was made with bad_amplitude=keep \(now skip\)"):
        make("folder", bad_amplitudes, tmp_path / "keep", *ALL_TRAIN, "bad_amplitude=skip")
    with pytest.raises(InputError, match=r"bad_amplitude=loud: expected scale, skip or keep"):
        make("folder", bad_amplitudes, tmp_path / "other", *ALL_TRAIN, "bad_amplitude=loud")


def test_stereo_in_antiphase_is_reported(tmp_path: Path) -> None:
    """Its first channel is used, or it is skipped, or it is the silence that its mix is."""
    root, tone = tmp_path / "in", 0.3 * np.sin(np.arange(9_600) / 9)
    root.mkdir()
    soundfile.write(root / "good.wav", tone, 24_000)
    soundfile.write(root / "opposed.wav", np.stack([tone, -tone], axis=1), 24_000)
    prompts, manifest = prompts_and_reasons(root, tmp_path / "scale")
    assert np.array_equal(prompts["good"], prompts["opposed"]) and not manifest.skipped
    reason = "cancelled: its channels cancel each other in the mono mix; its first channel is used"
    assert [(row["path"], row["reason"]) for row in manifest.adjusted] == [("opposed.wav", reason)]
    prompts, manifest = prompts_and_reasons(root, tmp_path / "skip", "bad_amplitude=skip")
    assert set(prompts) == {"good"} and manifest.skipped[0]["reason"].startswith("cancelled: ")
    prompts, manifest = prompts_and_reasons(root, tmp_path / "keep", "bad_amplitude=keep")
    assert set(prompts) == {"good"} and manifest.skipped[0]["reason"].startswith("silent: ") and not manifest.adjusted


def test_truncated_files_are_skipped_or_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the format, a file is one row of the manifest, and segments are cut by what is really there."""
    root = tmp_path / "in"
    root.mkdir()
    wav = 0.3 * np.sin(np.arange(4 * 24_000) / 9)
    soundfile.write(root / "whole.wav", wav[:24_000], 24_000)
    for suffix in ("wav", "aiff", "mp3", "flac"):
        soundfile.write(root / f"half-{suffix}.{suffix}", wav * (1 + len(suffix) / 9 + ord(suffix[0]) / 999), 24_000)
        content = (root / f"half-{suffix}.{suffix}").read_bytes()
        (root / f"half-{suffix}.{suffix}").write_bytes(content[: len(content) // 2])
    cuts = ("data.segment_seconds=0.5", "data.min_seconds=0.5")
    assert make("folder", root, tmp_path / "skip", *ALL_TRAIN, *cuts) == 0
    assert "skipped: 4 inputs (4 truncated)" in capsys.readouterr().out
    manifest = Manifest.load(tmp_path / "skip")
    assert len(manifest.skipped) == 4 and manifest.num_samples("train") == 2
    assert make("folder", root, tmp_path / "keep", *ALL_TRAIN, *cuts, "truncated=keep") == 0
    manifest = Manifest.load(tmp_path / "keep")
    assert not manifest.skipped and 2 + 4 * 2 < manifest.num_samples("train") <= 2 + 4 * 4
    assert "adjusted: 4 inputs (4 truncated)" in capsys.readouterr().out
    assert {row["path"] for row in manifest.adjusted} == {f"half-{s}.{s}" for s in ("wav", "aiff", "mp3", "flac")}
    with pytest.raises(InputError, match=r"truncated=keep \(now skip\)"):
        make("folder", root, tmp_path / "keep", *ALL_TRAIN, *cuts)
    with pytest.raises(InputError, match="truncated=no: expected skip or keep"):
        make("folder", root, tmp_path / "other", *ALL_TRAIN, "truncated=no")
