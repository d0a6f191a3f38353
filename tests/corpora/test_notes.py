"""Rendered notes match their labels, are rendered once, and are in one split."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from tests.helpers.corpora import data, render_notes


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_notes_have_the_format_of_nsynth(notes_folder: Path) -> None:
    clips = list(data("nsynth", notes_folder).open().clips())
    assert len(clips) == 24
    for clip in clips:
        wav, rate = soundfile.read(clip.path, dtype="float32")
        assert (rate, wav.shape, soundfile.info(clip.path).subtype) == (16_000, (64_000,), "PCM_16")
        assert np.abs(wav).max() == pytest.approx(0.5, abs=1e-3)
        family, source = clip.labels["instrument_family_str"], clip.labels["instrument_source_str"]
        instrument, pitch, velocity = clip.labels["instrument"], clip.labels["pitch"], clip.labels["velocity"]
        assert clip.key == clip.labels["note_str"] == f"{family}_{source}_{instrument:03d}-{pitch:03d}-{velocity:03d}"


def test_notes_have_the_pitch_of_their_labels(notes_folder: Path) -> None:
    """The pitch by autocorrelation is within half a semitone of the label."""
    right = []
    for clip in data("nsynth", notes_folder).open().clips():
        wav, rate = soundfile.read(clip.path, start=8_000, stop=16_000)
        spectrum = np.abs(np.fft.rfft(wav, 4 * len(wav))) ** 2
        periods = np.fft.irfft(spectrum)[: rate // 50]
        low, high = rate / 1000, rate / 100
        lags = np.arange(len(periods))
        best = np.argmax(np.where((lags >= low) & (lags <= high), periods, -np.inf))
        measured = 69 + 12 * np.log2(rate / best / 440)
        away = (measured - clip.labels["pitch"] + 6) % 12 - 6  # this estimate cannot distinguish octaves
        right.append(abs(away) < 0.6)
    assert np.mean(right) > 0.85


def test_rendering_is_deterministic(notes_folder: Path, tmp_path: Path) -> None:
    assert tree(render_notes(tmp_path / "again")) == tree(notes_folder)


def test_notes_are_independent_of_each_other(notes_folder: Path, tmp_path: Path) -> None:
    other = render_notes(tmp_path / "other", "data.seed=7", "data.clips=40")
    ours = {name.rsplit("/")[-1]: wav for name, wav in tree(notes_folder).items() if name.endswith(".wav")}
    theirs = {name.rsplit("/")[-1]: wav for name, wav in tree(other).items() if name.endswith(".wav")}
    both = ours.keys() & theirs.keys()
    assert len(both) >= 5
    assert all(ours[name] == theirs[name] for name in both)


def test_notes_are_rendered_once(notes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shutil.copytree(notes_folder, tmp_path / "notes")
    monkeypatch.setattr("pipeline.corpora.notes.Synthesizer", lambda *_: pytest.fail("rendered again"))
    render_notes(root)
    with pytest.raises(
        InputError, match=r"data\.root=.*notes contains notes rendered with data\.clips=24 \(now 10\): choose"
    ):
        render_notes(root, "data.clips=10")
    assert tree(root) == tree(notes_folder)


def test_interrupted_rendering_is_resumed(notes_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(notes_folder, tmp_path / "notes")
    done = json.loads((root / "notes.json").read_text())
    (root / "notes.json").write_text(json.dumps({**done, "complete": False}))
    wav = next((root / "nsynth-train" / "audio").iterdir())
    wav.write_bytes(wav.read_bytes()[:1000])
    (root / "nsynth-test" / "examples.json").unlink()
    assert tree(render_notes(root)) == tree(notes_folder)


@pytest.mark.parametrize(("split_by", "group"), [("instrument", ["instrument"]), ("note", ["instrument", "pitch"])])
def test_no_group_is_in_two_splits(tmp_path: Path, split_by: str, group: list[str]) -> None:
    settings = [f"data.split_by={split_by}", "data.velocities=[60,100]", "data.pitches=60-64", "data.clips=null"]
    root = render_notes(tmp_path / "notes", *settings)
    splits: dict[tuple, set] = {}
    for clip in data("nsynth", root).open().clips():
        splits.setdefault(tuple(clip.labels[name] for name in group), set()).add(clip.split)
    assert all(len(of) == 1 for of in splits.values())
    assert {split for of in splits.values() for split in of} == {"train", "valid", "test"}
    if split_by == "note":
        by_instrument: dict[int, set] = {}
        for (instrument, _), of in splits.items():
            by_instrument.setdefault(instrument, set()).update(of)
        assert all("train" in of for of in by_instrument.values()), "notes of valid and test are of known instruments"


def test_silent_notes_are_dropped(tmp_path: Path) -> None:
    """At the lowest velocity these instruments are silent."""
    root = render_notes(tmp_path / "notes", "data.velocities=[1,100]", "data.clips=null", "data.pitches=60-61")
    velocities = [clip.labels["velocity"] for clip in data("nsynth", root).open().clips()]
    assert velocities.count(100) == 12
    assert velocities.count(1) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.programs=0-120", "data.programs=0-120: expected a range like 0-111"),
        ("data.pitches=high", "data.pitches=high: expected"),
        ("data.velocities=[0]", "data.velocities"),
        ("data.split_by=colour", "expected instrument or note"),
        ("data.clips=100000", "expected 1 to 96"),
        ("data.test=0.9", "to train on"),
        ("data.soundfont=/nowhere.sf2", "data.soundfont=/nowhere.sf2 is not a file"),
    ],
)
def test_settings_out_of_range_are_errors(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render_notes(tmp_path / "notes", setting)
    assert not (tmp_path / "notes").exists(), "an error before any work"


def test_invalid_soundfont_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.sf2").write_bytes(b"RIFF of nothing")
    with pytest.raises(InputError, match=r"no\.sf2 is not a soundfont"):
        render_notes(tmp_path / "notes", f"data.soundfont={tmp_path / 'no.sf2'}")


def test_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"data\.root=.* did not render"):
        render_notes(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_synthesizer_error_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(InputError, match="pip install --no-deps tinysoundfont"):
        render_notes(tmp_path / "notes")
    assert not (tmp_path / "notes").exists()


def test_unwritable_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data\.root=.*file/notes cannot be written"):
        render_notes(tmp_path / "file" / "notes")


def test_only_the_used_seconds_are_rendered(notes_folder: Path, tmp_path: Path) -> None:
    """Notes are rendered up to the next second of data.seconds; complete notes serve as well."""
    short = render_notes(tmp_path / "short", "data.seconds=0.6")
    for name, content in tree(short).items():
        if name.endswith(".wav"):
            wav, complete = (soundfile.read(root / name, dtype="float32")[0] for root in (short, notes_folder))
            assert len(wav) == 16_000 and content != tree(notes_folder)[name]
            part = complete[: len(wav) - 200]
            scale = np.dot(wav[: len(part)], part) / np.dot(part, part)
            assert np.abs(wav[: len(part)] - scale * part).max() < 2e-3 and scale > 0.99
    before = tree(notes_folder)
    render_notes(notes_folder, "data.seconds=0.6")
    assert tree(notes_folder) == before
    with pytest.raises(InputError, match=r"rendered with data\.seconds=1 \(now None\): choose"):
        render_notes(short)
