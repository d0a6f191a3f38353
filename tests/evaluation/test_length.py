"""Sound at length: stretches, the analysis `length`, its curves, and the window's defaults."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.evaluation.stretches import Clip, level_of, measure_stretches, stretch_edges
from pipeline.generation.loaded_run import load_run
from tests.helpers.trained_run import Workspace, generate, run_command, sidecar

RATE = 24_000


@given(st.floats(0.1, 200), st.floats(0.1, 50))
def test_stretches_cover_the_sound(length: float, stretch: float) -> None:
    """None is shorter than half of a stretch, unless the sound is."""
    edges = stretch_edges(length, stretch)
    assert edges[0] == 0 and edges[-1] == length and edges == sorted(edges)
    spans = [end - start for start, end in itertools.pairwise(edges)]
    assert all(span >= min(length, stretch / 2) * 0.999 and span <= stretch * 1.501 for span in spans)


def test_what_is_missing_after_the_end_is_silence(workspace: Workspace) -> None:
    """A tone of the clip's level that ends in the second of three stretches."""
    run = load_run(workspace.run(), "cpu")
    tone = (0.1 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
    codes = np.arange(2 * 60).reshape(2, 60) % 7
    clip = Clip(np.ones(run.embedder.dim), 69.0, level_of(tone))
    measures = measure_stretches(tone[: RATE * 4 // 5], codes, clip, [0, 0.5, 1, 1.5], run)
    assert measures["ended"].tolist() == [0, 1, 1] and measures["silent"].tolist() == [0, 0, 1]
    assert measures["level"][0] == pytest.approx(0, abs=0.1) and measures["change"][0] == 0
    assert measures["level"][1] == pytest.approx(10 * np.log10(0.6), abs=0.1)  # 0.3 of 0.5 s
    assert measures["level"][2] < -30 and measures["pitch"][0] == 1


@pytest.fixture(scope="module")
def evaluated(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with sounds four times as long as the training clips."""
    out = tmp_path_factory.mktemp("length")
    settings = ("n=2", "temperatures=[1]", "resamples=20", "pitch=false", "analyses=[length]", f"out={out}")
    windows = "windows=[{window: 0.2, window_stride: 0.1, window_keep: 0},{}]"
    run, shards = f"run={workspace.run()}", f"shards={workspace.dataset}"
    run_command("evaluate", run, shards, *settings, "length=1.6", "stretch=0.4", windows)
    return out


def test_each_stretch_of_each_window_is_measured(evaluated: Path) -> None:
    result = json.loads((evaluated / "evaluate.json").read_text())["analyses"]["length"]
    spans = ["0-0.4 s", "0.4-0.8 s", "0.8-1.2 s", "1.2-1.6 s"]
    curves = result["details"]["curves"]
    assert [*curves] == ["t1, window 0.20/0.11/0.00 s", "t1, window 0.13/0.04/0.04 s"]
    assert [*result["rows"]][2:] == [f"{curve}: {span}" for curve in curves for span in spans]
    for curve, stretches in curves.items():
        assert [result["rows"][f"{curve}: {span}"] for span in spans] == stretches
        assert all(
            {"prompt fidelity", "silent", "loops", "level", "change", "ended"} <= set(each) for each in stretches
        )
    assert result["details"]["middles"] == pytest.approx([0.2, 0.6, 1.0, 1.4]) and len(result["notes"]) == 2
    sounds = sorted(evaluated.glob("*.length[12].wav"))
    assert len(sounds) == 4 and {soundfile.info(path).frames for path in sounds} == {round(1.6 * RATE)}


def test_report_has_the_curves(workspace: Workspace, evaluated: Path, tmp_path: Path) -> None:
    small = ("n=1", "temperatures=[1]", "codebooks=[1]", "num_interpolations=0", f"out={tmp_path / 'r.html'}")
    shards, evaluation = f"shards={workspace.dataset}", f"evaluation={evaluated / 'evaluate.json'}"
    run_command("report", f"run={workspace.run()}", shards, evaluation, *small)
    page = (tmp_path / "r.html").read_text()
    assert "Sound at length" in page and "level (dB)" in page and "window 0.13/0.04/0.04 s" in page


def test_sidecar_of_an_older_version_generates_its_sound(workspace: Workspace, tmp_path: Path) -> None:
    """It had no `window_keep`, and `auto` was half of the training clips and half of the window."""
    run, long = f"run={workspace.run()}", ("mode=continue", f"prompt={workspace.tones[0]}", "seconds=1.2")
    before = ("window=half", "window_stride=half", "window_keep=0")
    assert generate(run, *long, *before, f"out={tmp_path / 'old.wav'}") == 0
    content = sidecar(tmp_path / "old.wav")
    assert content["settings"]["window"] == pytest.approx(0.2) and content["settings"]["window_keep"] == 0
    content["settings"] |= {"window": "auto", "window_stride": "auto"}
    del content["settings"]["window_keep"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert generate(run, f"from={tmp_path / 'old.json'}", f"out={tmp_path / 'again.wav'}") == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "old.wav").read_bytes()
    assert generate(run, *long, f"out={tmp_path / 'new.wav'}") == 0
    assert (tmp_path / "new.wav").read_bytes() != (tmp_path / "old.wav").read_bytes()


def test_kept_frames_leave_room_in_the_window(workspace: Workspace, tmp_path: Path) -> None:
    long = ("mode=continue", "seconds=1.2", "window=0.2", "window_stride=0.1", f"out={tmp_path / 'o.wav'}")
    with pytest.raises(InputError, match=r"window_keep=0.15: 11 frames; give at most 6"):
        generate(f"run={workspace.run()}", *long, "window_keep=0.15")
