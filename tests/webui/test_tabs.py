"""Tabs of the page: one from a plug-in, and one whose visitor closes the page."""

from __future__ import annotations

import importlib.util
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.demo_server import Server, running_demo
from tests.helpers.models import LABELED
from tests.helpers.preprocess_runs import ROOT
from tests.helpers.small_page import form
from tests.helpers.trained_run import LENGTH, Workspace, run_command, sidecar

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)

LABELS_TYPED = "conditions={pitch: '62', velocity: 64, tags: [dark, long]}"
UNLIMITED = '''"""A tab that asks for more than the page allows."""

from pipeline.webui.tabs import TABS, Tab


@TABS.register("unlimited")
class UnlimitedTab(Tab):
    title = "Unlimited"
    order = 5
    button = "Generate"
    has_controls = False

    def inputs(self, page):
        return [page.run_dropdown()]

    def outputs(self, page):
        return [page.download()]

    def run(self, request, *values):
        result = request.generate(request.settings(values[0], n=100))
        yield (request.store(result.files),)
'''


@pytest.fixture(scope="module")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page with the tab and the filter of docs/extending.md, and a tab that asks for more than the page allows."""
    root = tmp_path_factory.mktemp("tabs")
    examples = re.findall(r"```py\n# (\w+)\.py\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    for name in ("temperatures", "top_n_sigma"):
        (root / f"{name}.py").write_text(dict(examples)[name])
    (root / "unlimited.py").write_text(UNLIMITED)
    (root / "folder").mkdir()
    overrides = ("plugins=[temperatures,top_n_sigma,unlimited]", "limits.seconds=60", f"examples={workspace.tones[0]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with running_demo([workspace.run(), workspace.run(conditions=LABELED)], root / "folder", *overrides) as running:
            yield running


def test_tab_of_a_plugin_obeys_the_page(server: Server, tmp_path: Path) -> None:
    """The tab of docs/extending.md generates, with the slider of a filter; the limits are those of the page."""
    config = json.loads(server.get("/config")[1])
    titles = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
    assert titles[:2] == ["Unlimited", "Generate"] and titles.index("Temperatures") == titles.index("Generate") + 1
    labels = [part["props"].get("label") for part in config["components"] if part["type"] == "slider"]
    assert labels.count("Top-n-sigma") == labels.count("Top-k") == labels.count("Guidance") > 0
    client, run = server.client(tmp_path / "down"), str(server.runs[0])
    html, seed = client.predict(run, None, 0.7, 0, 0, 1, LENGTH, 4, False, api_name="/temperatures")
    assert html.count("<audio") == 3 and "temperature 1.0" in html and seed == 4
    with pytest.raises(Exception, match="n=100: this page generates at most 8"):
        client.predict(run, api_name="/unlimited")
    data = [run, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 0.7, 0, 0, 1, LENGTH, 0, False]
    assert server.post("/gradio_api/call/temperatures", {"data": data})[0] == 400


def test_conditions_have_inputs_for_the_selected_model(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    """A dropdown, a slider with a checkbox, and several of a list; the sound is that of the command line."""
    config = json.loads(server.get("/config")[1])
    groups = [part["props"]["visible"] for part in config["components"] if part["type"] == "group"]
    assert groups == [False] * 3  # in Generate, Interpolate and Morph; the first model has no labels
    client, labels = server.client(tmp_path / "down"), ("62", True, 64, ["dark", "long"])
    arguments = (None, 1, *labels, 0.7, 0, 0, 1, LENGTH, 4, False)
    settings = ("seed=4", f"seconds={LENGTH}", "device=cpu", f"out={tmp_path}/sound.wav")
    for run, conditions in zip(server.runs, ([], [LABELS_TYPED]), strict=True):
        outputs = client.predict(str(run), *arguments, api_name="/generate")
        assert all(setting in outputs[1] for setting in ("conditions.pitch=62", "dark") if conditions)
        assert run_command("generate", f"run={run}", *conditions, *settings) == 0
        assert Path(outputs[2][0]).read_bytes() == (tmp_path / "sound.wav").read_bytes()
        stored = json.loads(Path(outputs[2][1]).read_text())["settings"]
        assert stored["conditions"] == sidecar(tmp_path / "sound.wav")["settings"]["conditions"]


def test_closing_the_page_stops_the_codec(server: Server, tmp_path: Path) -> None:
    """Decoding stops between two numbers of codebooks, and no results are stored."""
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 24_000), 24_000)
    upload = json.loads(_upload(server, tmp_path / "long.wav"))
    file = {"path": upload[0], "orig_name": "long.wav", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [str(server.runs[0]), file, list(range(1, 9))]}
    event = json.loads(server.post("/gradio_api/call/codec", body)[1])["event_id"]
    (requests,) = server.folder.glob("*/requests")
    with urllib.request.urlopen(f"{server.address}/gradio_api/call/codec/{event}"):
        while not list(requests.iterdir()):
            time.sleep(0.01)
    while list(requests.iterdir()):
        time.sleep(0.01)
    assert not list(server.folder.rglob("*.k8.wav"))


def _upload(server: Server, path: Path) -> bytes:
    """The response to an upload."""
    body, kind = form(path.read_bytes(), path.name)
    request = urllib.request.Request(f"{server.address}/gradio_api/upload", body, {"content-type": kind})
    return server.send(request)[1]
