"""The settings `prepare` of preprocessing: silence, trimming, loudness, near copies; off, they change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from pipeline.audio import audio_io, loudness
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.data.build_state import PLAN
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, read_shard
from tests.helpers.preprocess_runs import make

RATE = 24_000
ALL_TRAIN = ("data.valid=0", "data.test=0", "data.min_seconds=0.01")


def tone(seconds: float, pitch: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def samples(out: Path) -> dict[str, Sample]:
    shards = [shard.name for shards in Manifest.load(out).splits.values() for shard in shards]
    return {sample.metadata["path"]: sample for name in shards for sample in read_shard(out / name)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tone, one between silence, one that is mostly silence, a loud click, and silence."""
    root = tmp_path_factory.mktemp("prepare") / "in"
    root.mkdir()
    click = silence(0.5)
    click[6000] = 0.9
    sounds = {
        "tone": tone(0.5), "ends": np.concatenate([silence(0.1), tone(0.3, 330, 0.05), silence(0.2)]),
        "rare": np.concatenate([tone(0.05, 550), silence(0.95)]), "click": click, "none": silence(0.5),
        "dither": np.sign(tone(0.5)) / 32768,
    }  # fmt: skip
    for name, wav in sounds.items():
        soundfile.write(root / f"{name}.wav", wav, RATE, subtype="FLOAT")
    return root


def test_silence_is_skipped_and_nothing_else_changes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The defaults. They are not recorded, so that older datasets stay valid."""
    assert make("folder", corpus, tmp_path / "out", *ALL_TRAIN) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert samples(tmp_path / "out").keys() == {"tone.wav", "ends.wav", "rare.wav", "click.wav"}
    reasons = {row["path"]: row["reason"] for row in manifest.skipped}
    assert reasons.keys() == {"none.wav", "dither.wav"} and manifest.silent == 0
    assert reasons["none.wav"] == "silent: it stays below prepare.silence=-80 dBFS"
    assert "skipped: 2 inputs (2 silent)" in capsys.readouterr().out
    assert "prepare" not in (tmp_path / "out" / PLAN).read_text() and "prepare" not in manifest.data
    assert all("gain_db" not in sample.metadata for sample in samples(tmp_path / "out").values())


def test_prepared_clips_are_trimmed_and_equally_loud(corpus: Path, tmp_path: Path) -> None:
    """The manifest records the settings; each clip's metadata lead to its audio in the corpus."""
    out = tmp_path / "out"
    chosen = ("prepare.silence=-60", "prepare.min_sound=0.1", "prepare.trim=true", "prepare.loudness=-23")
    assert make("folder", corpus, out, *ALL_TRAIN, *chosen) == 0
    manifest, result = Manifest.load(out), samples(out)
    assert manifest.data["prepare"] == {
        "silence": -60, "min_sound": 0.1, "trim": True, "loudness": -23, "peak": -1,
    }  # fmt: skip
    assert json.loads((out / PLAN).read_text())["asked"]["prepare"] == manifest.data["prepare"]
    reasons = {row["path"]: row["reason"].partition(":")[0] for row in manifest.skipped}
    silent = {"none.wav": "silent", "dither.wav": "silent"}
    assert reasons == silent | {"rare.wav": "too little sound", "click.wav": "too little sound"}
    info = result["ends.wav"].metadata
    assert (info["start"], info["duration"]) == (0.1, 0.3)
    for name in ("tone.wav", "ends.wav"):
        wav = load_source_audio(str(corpus), result[name].metadata, RATE)
        assert wav is not None and loudness.measure_loudness(wav, RATE) == pytest.approx(-23, abs=0.1)
    with pytest.raises(InputError, match=r"made with prepare\.loudness=-23 \(now None\), prepare.*: give another out="):
        make("folder", corpus, out, *ALL_TRAIN)


def test_peak_limits_the_gain(corpus: Path, tmp_path: Path) -> None:
    """A click cannot be as loud as a tone: it gets as much gain as its peak allows, and the manifest says so."""
    out = tmp_path / "out"
    assert make("folder", corpus, out, *ALL_TRAIN, "prepare.loudness=-14", "prepare.peak=-3") == 0
    notes = {row["path"]: row["reason"] for row in Manifest.load(out).adjusted}
    assert notes["click.wav"].startswith("limited by its peak: at prepare.loudness=-14 LUFS it would exceed")
    assert "tone.wav" not in notes
    for sample in samples(out).values():
        wav = load_source_audio(str(corpus), sample.metadata, RATE)
        assert wav is not None and loudness.measure_true_peak(wav, RATE) <= -2.99


def test_silent_segments_are_named(tmp_path: Path) -> None:
    """A pause in a recording costs its segments only."""
    root = tmp_path / "in"
    root.mkdir()
    soundfile.write(root / "song.wav", np.concatenate([tone(1.0), silence(1.0), tone(1.0, 550)]), RATE)
    assert make("folder", root, tmp_path / "out", *ALL_TRAIN, "data.segment_seconds=0.5") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.num_samples("train") == 4
    assert [row["key"][-5:] for row in manifest.skipped] == ["00002", "00003"]


def test_folder_of_silence_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    soundfile.write(root / "none.wav", silence(1), RATE)
    assert make("folder", root, tmp_path / "out", *ALL_TRAIN) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path / 'out'} has no clip to train on")
    assert printed.err.count("\n") == 1 and "1 silent" in printed.out and "next:" not in printed.out


def copies(root: Path) -> None:
    """12 sounds, and near copies of them: as MP3, quieter at 16 kHz, and trimmed."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(12):
        time = np.arange(RATE) / RATE
        wav = 0.4 * np.sin(np.cumsum(rng.uniform(0.02, 0.3, 24).repeat(1000))) * np.exp(-2 * time)
        soundfile.write(root / f"{number:02d} a.wav", wav, RATE)
        soundfile.write(root / f"{number:02d} b.mp3", wav, RATE)
        soundfile.write(root / f"{number:02d} c.wav", 0.3 * soxr.resample(wav, RATE, 16_000), 16_000)
        soundfile.write(root / f"{number:02d} d.flac", wav[5 : RATE * 9 // 10], RATE)


def test_near_copies_share_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each copy is used, in the split of the first of its kind; those that moved are counted and named."""
    copies(tmp_path / "in")
    thirds = ("data.valid=0.33", "data.test=0.33", "codec.codebooks=1")

    def splits(out: Path, *settings: str) -> dict[str, str]:
        assert make("folder", tmp_path / "in", out, *thirds, *settings) == 0
        return {path: sample.metadata["split"] for path, sample in samples(out).items()}

    before = splits(tmp_path / "apart")
    after = splits(tmp_path / "grouped", "prepare.group_copies=true")
    assert len(after) == 48 and before != after
    assert after == {path: before[f"{path[:2]} a.wav"] for path in before}
    moved = {row["path"]: row["reason"] for row in Manifest.load(tmp_path / "grouped").adjusted}
    assert moved.keys() == {path for path in before if before[path] != after[path]}
    path = next(iter(moved))
    expected = f"near copy: of '{path[:2]} a.wav', and in its split: {after[path]} instead of {before[path]}"
    assert moved[path] == expected and f"{len(moved)} near copy" in capsys.readouterr().out
    assert splits(tmp_path / "grouped", "prepare.group_copies=true") == after, "a second run changes nothing"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prepare.loudness=3", "prepare.loudness=3: expected a number from -70 to 0 or null"),
        ("prepare.silence=0", "prepare.silence=0: expected a number below 0"),
        ("prepare.min_sound=2", "prepare.min_sound=2: expected a number from 0 to 1"),
        ("prepare.trim=-60", "prepare.trim=-60: expected true or false"),
        ("prepare.loud=-20", "there is no setting 'prepare.loud'"),
    ],
)
def test_invalid_preparation_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("folder", tmp_path, tmp_path / "out", setting)
    assert not (tmp_path / "out").exists()


def test_short_clip_keeps_its_audio(tmp_path: Path) -> None:
    """A clip shorter than a frame of 20 ms and a gating block is prepared like any other."""
    root = tmp_path / "in"
    root.mkdir()
    soundfile.write(root / "tick.wav", tone(0.01, 1000, 0.2), RATE, subtype="FLOAT")
    assert make("folder", root, tmp_path / "out", *ALL_TRAIN, "prepare.trim=true", "prepare.loudness=-40") == 0
    (sample,) = samples(tmp_path / "out").values()
    wav = load_source_audio(str(root), sample.metadata, RATE)
    assert wav is not None and len(wav) == 240 and loudness.measure_loudness(wav, RATE) == pytest.approx(-40, abs=0.1)
    assert not audio_io.is_silent(wav)
