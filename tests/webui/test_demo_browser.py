"""The page of pipeline.demo in a real browser. DEMO_PICTURES=FOLDER keeps its pictures there."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.helpers.browser import Browser, browser, until
from tests.helpers.demo_server import Server
from tests.helpers.trained_run import LENGTH, Workspace

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)


def picture(window: Browser, folder: Path, name: str) -> None:
    """Keep what is shown."""
    place = Path(os.environ.get("DEMO_PICTURES", folder))
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.png").write_bytes(window.picture())


def test_a_browser_uploads_generates_and_plays(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        window.open(server.address)
        until(window, "document.querySelector('#generate')")
        picture(window, tmp_path, "opened")
        window.choose("input[type=file]", workspace.tones[4])
        until(window, "document.body.innerText.includes('tone4')|| document.querySelector('[data-testid*=waveform]')")
        window.run("document.querySelector('#generate').click(); done()")
        live = until(window, "document.querySelector('.onair audio')?.duration")
        durations = until(window, "players('#generated')".replace("players", PLAYERS))
        picture(window, tmp_path, "generated")
        assert live == pytest.approx(LENGTH, abs=0.02)
        assert durations == pytest.approx([0.5, LENGTH, LENGTH], abs=0.02)  # the upload, and two samples
        window.run("document.querySelectorAll('#generated .sound button')[1].click(); done()")
        until(window, "document.querySelectorAll('#generated .sound.playing').length === 1")
        sources = "[...document.querySelectorAll('#generated audio')].map((audio) => audio.src)"
        first = window.run(f"document.querySelector('#generated .sound').dataset.old = 1; done({sources})")
        again = "[...document.querySelectorAll('button')].find((b) => b.innerText === 'Again with this seed')"
        window.run(f"{again}.click(); done()")
        until(window, f"!document.querySelector('#generated [data-old]') && {sources}.length")
        assert window.run(f"done({sources})") == first
        elsewhere = """done(performance.getEntriesByType('resource').map((r) => r.name)
            .filter((name) => name.startsWith('http') && !name.startsWith(location.origin)))"""
        assert window.run(elsewhere) == []


PLAYERS = """((where) => {
    const found = [...document.querySelectorAll(where + ' audio')].map((audio) => audio.duration);
    return found.length && found.every((d) => d > 0) ? found : null;
})"""


@pytest.mark.slow
def test_a_browser_goes_on_after_bad_uploads(
    server: Server, tmp_path: Path, spoiled: dict[str, tuple[Path, str]]
) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        for kind, (file, message) in spoiled.items():
            window.open(server.address)
            until(window, "document.querySelector('#generate')")
            window.choose("input[type=file]", file)
            until(window, f"document.body.innerText.includes({json.dumps(message)})")
            picture(window, tmp_path, f"bad-{kind}")
        window.open(server.address)
        until(window, "document.querySelector('#generate')")
        window.run("document.querySelector('#generate').click(); done()")
        assert len(until(window, "players('#generated')".replace("players", PLAYERS))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tab", "button", "results", "count"),
    [
        ("Interpolate", "#interpolate", "#interpolated", 1 + 7 + 2),
        ("Morph", "#morph", "#morphed", 1 + 2),
        ("Codec", "#hear", "#heard", 1 + 4),
        ("Compare", "#compare", "#compared", 1 + 2 * 3),
    ],
)
def test_a_browser_plays_every_tab_with_its_examples(
    server: Server, tmp_path: Path, tab: str, button: str, results: str, count: int
) -> None:
    with browser() as window:
        window.resize(1440, 1500)
        window.open(server.address)
        found = f"[...document.querySelectorAll('button[role=tab]')].find((b) => b.innerText.trim() === '{tab}')"
        until(window, found)
        window.run(f"{found}.click(); done()")
        until(window, f"document.querySelector('{button}')?.offsetParent")
        picture(window, tmp_path, f"{tab.lower()}-opened")
        window.run(f"document.querySelector('{button}').click(); done()")
        assert len(until(window, f"players('{results}')".replace("players", PLAYERS))) == count
        picture(window, tmp_path, f"{tab.lower()}-made")
