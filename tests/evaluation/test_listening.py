"""The listening test: its page in a real browser, and the results of its ratings."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio.loudness import measure_loudness
from pipeline.common.errors import InputError
from pipeline.evaluation.listening.answers import Ratings
from pipeline.evaluation.listening.key import ListeningKey
from pipeline.evaluation.listening.results import summarize_ratings
from pipeline.evaluation.listening.stimuli import equalize, low_pass
from tests.helpers.axe import accessibility_faults
from tests.helpers.browser import browser, until
from tests.helpers.listening import rate, read_page, save_answers
from tests.helpers.trained_run import Workspace, run_command

RATE = 24_000
FIXED = {"hidden reference": 100, "codec (ceiling)": 80, "anchor (3.5 kHz)": 20}


@pytest.fixture(scope="module")
def runs(workspace: Workspace) -> list[str]:
    """Two models."""
    return [str(workspace.run()), str(workspace.run("parallel"))]


@pytest.fixture(scope="module")
def page(runs: list[str], nsynth_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test of two models with two trials."""
    out = tmp_path_factory.mktemp("listening") / "test.html"
    overrides = (f"run={runs[0]}", f"other_runs=[{runs[1]}]", f"corpus_root={nsynth_folder}", f"out={out}", "n=2")
    run_command("report", "listening_test=true", *overrides, "question='Is it </script><b> close?'")
    return out


def test_page_is_blind_and_needs_no_network(page: Path, runs: list[str]) -> None:
    """No name is readable, no order says what a sound is, and no address leaves the page."""
    text, data = page.read_text(), read_page(page)
    assert not [name for name in (*runs, *FIXED, "http:", "https:", "</script><b>") if name in text]
    assert data["question"] == "Is it </script><b> close?" and "default-src &#39;none&#39;" not in text
    key = ListeningKey.decode(data["key"])
    assert key.conditions == {
        "hidden reference": "reference", "codec (ceiling)": "ceiling", runs[0]: "model", runs[1]: "model",
        "anchor (3.5 kHz)": "anchor",
    }  # fmt: skip
    assert [trial["sounds"] for trial in data["trials"][1:]] == [sorted(trial) for trial in key.trials]
    assert not set(data["trials"][0]["sounds"]) & {name for trial in key.trials for name in trial}
    again = page.with_name("again.html")
    run_command("report", f"run={runs[0]}", "listening_test=true", "n=1", f"out={again}")
    key = ListeningKey.decode(read_page(again)["key"])
    assert [*key.conditions.values()] == ["reference", "model", "anchor"], (
        "without recordings the codec is the reference"
    )


def test_sounds_of_a_trial_have_one_loudness_and_length(page: Path) -> None:
    data = read_page(page)
    wavs = {name: soundfile.read(io.BytesIO(base64.b64decode(sound)))[0] for name, sound in data["sounds"].items()}
    for trial in data["trials"]:
        sounds = [wavs[name] for name in (trial["reference"], *trial["sounds"])]
        levels = [measure_loudness(wav, RATE) for wav in sounds]
        assert len({len(wav) for wav in sounds}) == 1 and max(levels) - min(levels) < 0.2


def test_levels_are_limited_by_peaks_and_noise() -> None:
    """A clicking sound lowers the others by 10 dB at most; a nearly silent one is not made loud."""
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    click, stereo = np.zeros(RATE, np.float32), np.stack([noise, noise], 1) * np.float32(0.1)
    click[100] = 0.9
    wavs = equalize([0.2 * noise, click, 1e-3 * noise, 0 * noise], RATE)
    levels = [measure_loudness(wav, RATE) for wav in wavs]
    assert levels[0] == pytest.approx(-33, abs=0.1) and -70 < levels[1] < -33 and levels[3] == -np.inf
    assert levels[2] == pytest.approx(measure_loudness(1e-3 * noise, RATE) + 20, abs=0.1)
    first, second = equalize([stereo, stereo[:5000]], RATE)
    assert first.shape == second.shape == (RATE, 2) and not second[5000:].any()


@pytest.mark.parametrize("channels", [1, 2])
def test_anchor_has_nothing_above_its_cutoff(channels: int) -> None:
    """BS.1534: flat within 0.1 dB up to 3.5 kHz, 25 dB down at 4 kHz, 50 dB down at 4.5 kHz."""
    seconds = np.arange(2 * RATE) / RATE
    for hertz, low, high in (
        (500, -0.1, 0.1),
        (3450, -0.1, 0.1),
        (4000, -200, -25),
        (4500, -200, -50),
        (9000, -200, -50),
    ):
        tone = np.sin(2 * np.pi * hertz * seconds).astype(np.float32)
        wav = tone if channels == 1 else np.stack([tone, 0.5 * tone], 1)
        inner = low_pass(wav, RATE)[RATE // 2 : -RATE // 2]
        gain = 20 * np.log10(inner.std(0) / wav[RATE // 2 : -RATE // 2].std(0))
        assert np.all((low <= gain) & (gain <= high)), hertz


def test_a_listener_takes_the_test_by_keyboard(page: Path, runs: list[str], tmp_path: Path) -> None:
    """From the first page to the saved file by keys alone, with a reload in between; compare reads the file."""
    with browser() as window:
        window.save_downloads(tmp_path)
        window.open(f"file://{page}")
        window.press("Tab", *"Ann", "Enter")
        titles = {name: t for trial in ListeningKey.decode(read_page(page)["key"]).trials for name, t in trial.items()}
        points = {**FIXED, runs[0]: 60, runs[1]: 40}
        for view in range(3):
            loaded = f"state.view === {view} && player.duration > 0.1"
            until(window, loaded)
            assert accessibility_faults(window) == []
            window.press("Enter")  # is refused: nothing is played or rated
            assert (
                window.run("done(status.innerText)") == "Not played yet: A, B, C, D, E. Not rated yet: A, B, C, D, E."
            )
            names = window.run(f"done(trials[{view}].sounds)")
            window.run("const box = document.querySelector('[type=checkbox]'); box.checked || box.click(); done()")
            window.press("r")  # sounds repeat, so that they still play when they are looked at
            for letter, name in zip("abcde", names, strict=True):
                window.press(letter, "End", *["PageDown"] * ((100 - points.get(titles.get(name, ""), 0)) // 10))
                assert window.run("done(player.playing)") == name
            if view == 1:
                window.open(f"file://{page}")
                until(window, loaded)
                assert window.run("done(trials[1].sounds)") == names
            window.press("Enter")
        window.press("Enter")
        until(window, "document.body.innerText.includes('Saved as listening-test-')")
        (name,) = window.run("done(document.body.innerText.match(/listening-test-\\S+\\.json/))")
        seen = window.run("done([document.body.innerText, performance.getEntriesByType('resource').length])")
        assert runs[0] not in seen[0] and seen[1] == 0
        wait_for_file(tmp_path / name)
    run_command("compare", f"ratings={tmp_path}/*.json", f"out={tmp_path / 'out'}", "resamples=10")
    results = json.loads((tmp_path / "out" / "compare.json").read_text())["ratings"]
    assert {title: mean["mean"] for title, mean in results["means"].items()} == points
    assert results["pairs"][0]["preferred"]["mean"] == 1 and results["listeners"] == 1


def wait_for_file(file: Path) -> None:
    """Wait until the browser has saved a file."""
    for _ in range(200):
        if file.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{file} was not saved")


def test_ratings_of_listeners_become_means(
    page: Path, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listeners who miss the reference are excluded; files that are damaged, repeated or of other tests are skipped."""
    points = {**FIXED, runs[0]: 60, runs[1]: 40}
    save_answers(tmp_path, *(rate(page, name, lambda _, title: points[title]) for name in ("Ann", "Bo")))
    deaf = rate(page, "D[red]|<b>\x1b[2J", lambda _, title: 100 - points[title])
    older = {**rate(page, "Ann", lambda *_: 100), "finished": "2025"}
    first = rate(page, "Ann", lambda _, title: points[title])
    damaged = {
        "cut": json.dumps(first)[:-9], "key": json.dumps({**first, "page": "0" * 16}), "json": "[]",
        "loud": json.dumps(rate(page, "L", lambda *_: 101)),
        "less": json.dumps({**first, "trials": first["trials"][1:]}),
        "older": json.dumps(older), "deep": "[" * 100_000, "nan": json.dumps(first).replace("60", "NaN"),
    }  # fmt: skip
    save_answers(tmp_path, deaf)
    for name, text in damaged.items():
        (tmp_path / f"{name}.json").write_text(text)
    run_command("compare", f"ratings={tmp_path}/*.json", f"out={tmp_path / 'out'}")
    results = json.loads((tmp_path / "out" / "compare.json").read_text())["ratings"]
    assert {title: mean["mean"] for title, mean in results["means"].items()} == points and results["listeners"] == 2
    assert {Path(file).stem for file in results["skipped"]} == {*damaged} and len(results["excluded"]) == 1
    printed, text = capsys.readouterr().out, (tmp_path / "out" / "compare.md").read_text()
    assert printed.count("skipped: ") == len(damaged) and printed.count("excluded: ") == 1 and "\x1b[2J" not in printed
    assert "<b>" not in text and "&lt;b&gt;" in text and "\x1b" not in text and "2 listeners, 2 clips" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no file matches"),
        ("[]", r"not the answers of a listening test \(.*\); give files that the page"),
        ("half", r"every listener rated the hidden reference below 90"),
    ],
)
def test_ratings_without_a_valid_listener_are_refused(
    page: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        text = json.dumps(rate(page, "Ann", lambda *_: 50)) if content == "half" else content
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        run_command("compare", f"ratings={tmp_path}/*.json", f"out={tmp_path / 'o'}")
    assert not (tmp_path / "o").exists()


def test_settings_that_contradict_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    test = [f"run={workspace.run()}", "listening_test=true"]
    many = ",".join(f"r{number}" for number in range(12))
    for command, overrides, message in (
        ("compare", [], "runs=: give run folders"),
        ("compare", ["runs=[a]", "ratings=[b]"], "give one of them"),
        ("compare", ["ratings=[b]"], "ratings=b: there is no such file"),
        ("report", [*test, f"other_runs=[{many}]"], "at most 12 sounds"),
        ("report", [*test, "sampling.temperature=[1,2]"], "give a number"),
    ):
        with pytest.raises(InputError, match=message):
            run_command(command, *overrides, f"out={tmp_path / 'o'}")


def test_intervals_cover_listeners_and_clips() -> None:
    """Where ratings differ by listener and by clip, 95 % intervals contain the true mean about as often as they say."""
    rng, hits = np.random.default_rng(1), 0
    key = ListeningKey(question="", conditions={"r": "reference", "m": "model"}, clips=["c"] * 8, trials=[{}])
    for _ in range(200):
        values = 50 + 8 * rng.standard_normal((12, 1)) + 8 * rng.standard_normal(8) + 4 * rng.standard_normal((12, 8))
        files = [str(i) for i in range(12)]
        ratings = Ratings(key, "", files, files, {"r": np.full((12, 8), 100.0), "m": values}, {})
        interval = summarize_ratings(ratings, 200, 0).means["m"].interval
        assert interval is not None
        hits += interval[0] <= 50 <= interval[1]
    assert 0.85 <= hits / 200 <= 0.99
