"""Timbre apart from pitch, and metrics by family: against notes whose instrument is known, and in the command."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.analyses.families import name_worst
from pipeline.evaluation.analyses.timbre import Request, agreement, chance_of_agreement
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.note_gallery import Note, NoteGallery
from pipeline.evaluation.results import MetricValue
from tests.helpers.trained_run import Workspace, run_command

INSTRUMENTS, PITCHES = ["flute", "organ", "reed"], [60.0, 62.0, 64.0, 67.0]
PROMPT = [{"kind": "prompt", "name": "prompt", "dropout": 0.0}]
PITCH = [{"kind": "number", "name": "pitch", "dropout": 0.0, "low": 21.0, "high": 108.0}]


def embed(note: Note, seed: int = 0) -> np.ndarray:
    """An embedding with more of the pitch than of the instrument, and a little noise."""
    parts = [np.random.default_rng(INSTRUMENTS.index(note.instrument)), np.random.default_rng(int(note.pitch))]
    noise = np.random.default_rng(seed).normal(size=32)
    return parts[0].normal(size=32) + 4 * parts[1].normal(size=32) + 0.2 * noise


@pytest.fixture(scope="module")
def gallery() -> NoteGallery:
    """Two notes of each instrument at each pitch, but one of the organ at 67."""
    notes = [Note(f"{i}-{p}-{v}", i, p) for i in INSTRUMENTS for p in PITCHES for v in (1, 2)]
    notes = [note for note in notes if note.key != "organ-67.0-2"]
    return NoteGallery(notes, np.stack([embed(note, seed) for seed, note in enumerate(notes)]))


def test_timbre_is_compared_at_one_pitch(gallery: NoteGallery) -> None:
    """A sound is nearest to its own instrument at its pitch, though another pitch of it is farther than another one."""
    for instrument in INSTRUMENTS:
        for pitch in PITCHES[:3]:
            note = Note("prompt", instrument, pitch)
            likeness = gallery.compare(embed(note, 99), note)
            assert likeness.nearest == instrument and likeness.own > likeness.others and likeness.instruments == 3
            assert likeness.own > likeness.floor
    a, b = embed(Note("", "flute", 60.0)), embed(Note("", "flute", 64.0))
    assert a @ b < a @ embed(Note("", "organ", 60.0))


def test_note_is_not_compared_with_itself(gallery: NoteGallery) -> None:
    assert gallery.can_compare(Note("organ-60.0-1", "organ", 60.0))
    assert gallery.can_compare(Note("other", "organ", 67.0))
    for note in (Note("organ-67.0-1", "organ", 67.0), Note("", "organ", 61.0), Note("", "bass", 60.0)):
        assert not gallery.can_compare(note)


def test_consistent_pairs_have_one_nearest_instrument() -> None:
    notes = [Note("", "flute", pitch) for pitch in (60.0, 62.0, 64.0)]
    requests = [Request(i, 0, note, "a") for i, note in enumerate(notes)] + [Request(3, 1, notes[0], "b")]
    shares = agreement(requests, ["flute", "organ", "flute", "flute"])
    assert shares[0] == pytest.approx(1 / 3) and np.isnan(shares[1])
    assert chance_of_agreement(["flute", "flute", "organ"], ["reed", "flute", "reed"]) == pytest.approx(1 / 2)
    assert np.isnan(chance_of_agreement(["flute"], ["reed"]))


def test_worst_family_is_that_farthest_from_its_ceiling() -> None:
    """Not that with the lowest value, nor one whose interval includes its ceiling."""

    def values(pitch: float, loops: float) -> dict[str, MetricValue]:
        pairs = {"pitch": pitch, "looping": loops}
        return {name: MetricValue(mean=v, interval=[v - 0.1, v + 0.1], n=9) for name, v in pairs.items()}

    ours = {"flute": values(0.7, 0.5), "mallet": values(0.3, 0.6), "organ": values(0.85, 0.1)}
    codec = {"flute": values(0.95, 0.0), "mallet": values(0.4, 0.6), "organ": values(0.9, 0.1)}
    text = name_worst(ours, codec, list_metrics())
    assert "pitch: flute, 70 % (codec 95 %)" in text and "loops: flute, 50 % (codec 0 %)" in text
    assert text.count("codec ") == 2 and "mallet" not in text and "fidelity" not in text
    assert "beyond chance" in name_worst({"organ": ours["organ"]}, codec, list_metrics())


@pytest.mark.parametrize("conditions", [PROMPT, PROMPT + PITCH], ids=["prompt", "prompt and pitch"])
def test_timbre_and_families_of_a_model(
    workspace: Workspace, tmp_path: Path, conditions: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics of all clips are the means of those of their families, and all shares are between 0 and 1."""
    run = workspace.run(conditions=conditions)
    own = ["analyses=[timbre,families]", "by=instrument_source_str", "pitches_per_prompt=2", "split=train"]
    if conditions == PROMPT:  # there is one note of each instrument at a pitch, but several of a source
        own.append("instrument=instrument_source_str")
    small = ("n=8", "temperatures=[1]", "resamples=50", f"out={tmp_path}")
    run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", *own, *small)
    results = json.loads((tmp_path / "evaluate.json").read_text())
    families = results["analyses"]["families"]["rows"]
    means = [row["prompt fidelity"] for title, row in families.items() if not title.endswith("codec")]
    assert len(means) == 2 and sum(value["n"] for value in means) == 8
    mean = sum(value["n"] * value["mean"] for value in means) / 8
    assert mean == pytest.approx(results["temperatures"]["1"]["fidelity"]["mean"])
    timbre = results["analyses"]["timbre"]["rows"]
    assert [*timbre][:2] == ["floor (other instruments)", "temperature 1"]
    assert conditions != PROMPT or [*timbre][2:] == ["ceiling (codec)"]
    shares = [
        row[name]["mean"] for row in timbre.values() for name in ("instrument", "pitch", "consistent") if name in row
    ]
    assert shares and 0 <= min(shares) <= max(shares) <= 1


def test_missing_labels_are_reported(workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run_command(
            *("evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path}", "n=2"),
            *("temperatures=[1]", "analyses=[timbre,families]", "by=colour", "instrument=colour", "resamples=10"),
        )
    assert json.loads((tmp_path / "evaluate.json").read_text())["analyses"] == {}
    assert "by=colour: no clip has this label" in caplog.text and "instrument_family_str" in caplog.text
    assert "instrument=colour: no pitch has notes of two instruments" in caplog.text
