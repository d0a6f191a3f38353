"""The page of pipeline.demo in a real browser. DEMO_PICTURES=FOLDER saves screenshots there."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.helpers.axe import accessibility_faults
from tests.helpers.browser import Browser, browser, until
from tests.helpers.demo_server import Server
from tests.helpers.trained_run import LENGTH, Workspace

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)


def save_screenshot(window: Browser, folder: Path, name: str) -> None:
    """Save a screenshot."""
    target = Path(os.environ.get("DEMO_PICTURES", folder))
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.png").write_bytes(window.screenshot())


def test_browser_uploads_generates_and_plays(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        window.open(server.address)
        until(window, "document.querySelector('#generate')")
        save_screenshot(window, tmp_path, "opened")
        window.choose("input[type=file]", workspace.tones[4])
        until(window, "document.body.innerText.includes('tone4')|| document.querySelector('[data-testid*=waveform]')")
        window.run("document.querySelector('#generate').click(); done()")
        live = until(window, "document.querySelector('.onair audio')?.duration")
        durations = until(window, "durations('#generated')".replace("durations", DURATIONS))
        save_screenshot(window, tmp_path, "generated")
        assert accessibility_faults(window) == []
        assert live == pytest.approx(LENGTH, abs=0.02)
        assert durations == pytest.approx([0.5, LENGTH, LENGTH], abs=0.02)  # the upload, and two samples
        window.run("document.querySelectorAll('#generated .sound .play')[1].click(); done()")
        until(window, "document.querySelectorAll('#generated .sound.playing').length === 1")
        sources = "[...document.querySelectorAll('#generated audio')].map((audio) => audio.src)"
        first = window.run(f"document.querySelector('#generated .sound').dataset.old = 1; done({sources})")
        window.run("document.querySelector('.again').click(); done()")
        until(window, f"!document.querySelector('#generated [data-old]') && {sources}.length")
        assert window.run(f"done({sources})") == first
        other_servers = """done(performance.getEntriesByType('resource').map((r) => r.name)
            .filter((name) => name.startsWith('http') && !name.startsWith(location.origin)))"""
        assert window.run(other_servers) == []


DURATIONS = """((where) => {
    const sounds = [...document.querySelectorAll(where + ' audio')];
    sounds.forEach((audio) => { audio.preload = 'metadata'; });
    const values = sounds.map((audio) => audio.duration);
    return values.length && values.every((d) => d > 0) ? values : null;
})"""


@pytest.mark.slow
def test_browser_works_after_bad_uploads(
    server: Server, tmp_path: Path, bad_prompts: dict[str, tuple[Path, str]]
) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        for kind, (file, message) in bad_prompts.items():
            window.open(server.address)
            until(window, "document.querySelector('#generate')")
            window.choose("input[type=file]", file)
            until(window, f"document.body.innerText.includes({json.dumps(message)})")
            save_screenshot(window, tmp_path, f"bad-{kind}")
        window.open(server.address)
        until(window, "document.querySelector('#generate')")
        window.run("document.querySelector('#generate').click(); done()")
        assert len(until(window, "durations('#generated')".replace("durations", DURATIONS))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tab", "button", "results", "count"),
    [
        ("Interpolate", "#interpolate", "#interpolated", 1 + 7 + 2),
        ("Morph", "#morph", "#morphed", 1 + 2),
        ("Codec", "#codec", "#decoded", 1 + 4),
        ("Compare", "#compare", "#compared", 1 + 2 * 3),
    ],
)
def test_browser_plays_every_tab_with_examples(
    server: Server, tmp_path: Path, tab: str, button: str, results: str, count: int
) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        window.open(server.address)
        tab_button = f"[...document.querySelectorAll('button[role=tab]')].find((b) => b.innerText.trim() === '{tab}')"
        until(window, tab_button)
        window.run(f"{tab_button}.click(); done()")
        until(window, f"document.querySelector('{button}')?.offsetParent")
        save_screenshot(window, tmp_path, f"{tab.lower()}-opened")
        window.run(f"document.querySelector('{button}').click(); done()")
        assert len(until(window, f"durations('{results}')".replace("durations", DURATIONS))) == count
        save_screenshot(window, tmp_path, f"{tab.lower()}-results")
        assert accessibility_faults(window) == []
