"""`python -m pipeline.demo`: a real server and real clients: sounds, limits, and files that stay secret."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio.codecs import load_codec
from pipeline.common.errors import InputError
from pipeline.webui.service import safe_name
from pipeline.webui.streaming import AudioStreamRegistry, stream_audio
from tests.helpers.demo_server import Server, running_demo
from tests.helpers.preprocess_runs import ROOT
from tests.helpers.trained_run import LENGTH, Workspace, run_command

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)


def generate(
    client: Any, run: Path, prompt: Path | None, seed: int, samples: int = 1, seconds: float = LENGTH
) -> list[Path]:
    """Return the files that the tab Generate offers for download."""
    from gradio_client import handle_file

    upload = None if prompt is None else handle_file(prompt)
    outputs = client.predict(str(run), upload, samples, 0.7, 0, 1, seconds, seed, False, api_name="/generate")
    assert outputs[3] == seed
    return [Path(file) for file in outputs[2]]


def test_health_check_names_the_models(server: Server) -> None:
    status, body = server.get("/healthz")
    models = json.loads(body)["models"]
    assert status == 200 and list(models) == list(map(str, server.runs))
    assert all(len(sha256) == 64 for sha256 in models.values())


def test_page_command_line_and_sidecar_give_the_same_bytes(
    server: Server, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, together = server.client(tmp_path / "down"), tmp_path / "together"
    together.mkdir()
    for seconds in (LENGTH, 1.1):  # as long as the training clips, and longer
        files = generate(client, server.runs[0], workspace.tones[1], 5, 2, seconds)
        name = f"{safe_name(server.runs[0].name)}-tone1-seed5"
        sounds = [f"{name}-{i}.{suffix}" for i in (1, 2) for suffix in ("wav", "json")]
        assert [file.name for file in files] == [*sounds, "tone1.wav"]
        for file in files:
            shutil.copy(file, together)
        monkeypatch.chdir(together)
        mode = "mode=continue" if seconds > LENGTH else "mode=prompt"
        overrides = (f"run={server.runs[0]}", "prompt=tone1.wav", mode, f"seconds={seconds}", "seed=6", "out=alone.wav")
        assert run_command("generate", *overrides) == 0
        assert (together / "alone.wav").read_bytes() == (together / f"{name}-2.wav").read_bytes()
        assert run_command("generate", f"from={name}-1.json", "out=again.wav") == 0
        assert (together / "again.wav").read_bytes() == (together / f"{name}-1.wav").read_bytes()
        assert str(server.folder) not in (together / f"{name}-1.json").read_text()


def test_shown_command_line_gives_the_same_bytes(
    server: Server, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import handle_file

    client, tones = server.client(tmp_path / "down"), [handle_file(tone) for tone in workspace.tones[:2]]
    run, controls = str(server.runs[1]), (0.9, 50, 1.5, LENGTH, 3, False)
    stops = (0, tones[0], 0.3, tones[1], 2, None, 2, None)
    outputs_by_mode = {
        "interpolate": client.predict(run, *tones, 4, "slerp", *controls, api_name="/interpolate"),
        "morph": client.predict(run, "linear", *stops, *controls, api_name="/morph")[1:],
    }
    for name, (html, files, seed) in outputs_by_mode.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        monkeypatch.chdir(folder)
        sound = folder / Path(files[0]).name
        assert sound.name == f"{safe_name(server.runs[1].name)}-tone0-tone1-seed3.wav"
        sound.rename(folder / "page.wav")
        line = re.search("<pre>(.*)</pre>", html, re.S)
        assert line and seed == 3
        overrides = shlex.split(unescape(line.group(1)))
        assert overrides[:3] == ["python", "-m", "pipeline.generate"] and run_command("generate", *overrides[3:]) == 0
        assert sound.read_bytes() == (folder / "page.wav").read_bytes()
        assert html.count("<audio") == {"interpolate": 1 + 1 + 4 + 1, "morph": 1 + 2}[name]


@pytest.mark.parametrize("clients", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_simultaneous_clients_get_their_own_sounds(
    server: Server, workspace: Workspace, tmp_path: Path, clients: int
) -> None:
    tone = workspace.tones[2]
    overrides = (
        f"run={server.runs[0]}",
        f"prompt={tone}",
        f"seconds={LENGTH}",
        f"n={clients}",
        f"out={tmp_path / 'alone'}",
    )
    assert run_command("generate", *overrides) == 0
    alone = [(tmp_path / "alone" / f"tone2-{seed + 1}.wav").read_bytes() for seed in range(clients)]
    assert len(set(alone)) == clients

    def request_sound(seed: int) -> bytes:
        return generate(server.client(tmp_path / str(seed)), server.runs[0], tone, seed)[0].read_bytes()

    with ThreadPoolExecutor(clients) as pool:
        assert list(pool.map(request_sound, range(clients))) == alone
    assert not list(server.folder.glob("*/requests/*")), "the folder of a request was not deleted"


def test_compared_models_use_the_same_seeds(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    runs, tone = list(map(str, server.runs)), handle_file(workspace.tones[0])
    html, seed = server.client(tmp_path).predict(runs, tone, 2, 0.7, 0, 1, LENGTH, 8, False, api_name="/compare")
    assert seed == 8 and html.count('"label">seed 8<') == html.count('"label">seed 9<') == 2
    assert "delay, 2 codebooks" in html and "parallel, 2 codebooks" in html
    sounds = re.findall(r"audio/wav;base64,([^\"]*)", html)
    assert len(set(sounds)) == len(sounds) == 5


def test_codec_tab_decodes_each_number_of_codebooks(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    client = server.client(tmp_path / "down")
    html, files = client.predict(str(server.runs[0]), handle_file(workspace.tones[3]), [1, 2, 8], api_name="/codec")
    assert [Path(file).name for file in files] == ["tone3.k1.wav", "tone3.k2.wav", "tone3.k8.wav"]
    assert (
        run_command("reconstruct", f"audio={workspace.tones[3]}", "codec=encodec_embedded", f"out={tmp_path / 'codec'}")
        is None
    )
    for file in files:
        assert Path(file).read_bytes() == (tmp_path / "codec" / Path(file).name).read_bytes()
    distances = [float(value) for value in re.findall(r"([\d.]+) dB away<", html)]
    assert len(distances) == 3 and distances[0] > distances[2]


def test_sound_streams_while_it_is_generated(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    """The player is shown before the sound is complete, and plays it up to rounding errors."""
    from gradio_client import handle_file

    job = server.client(tmp_path).submit(
        str(server.runs[0]), handle_file(workspace.tones[0]), 1, 0.7, 0, 1, 5, 2, False, api_name="/generate"
    )
    while not job.outputs():
        assert not job.done(), job.result()
        time.sleep(0.02)
    name = re.search(r'src="(live/[^"]+)"', job.outputs()[0][0])
    assert name and not job.done()
    status, audio = server.get(f"/{name.group(1)}")
    (tmp_path / "live.wav").write_bytes(audio)
    (live, rate), (generated, _) = soundfile.read(tmp_path / "live.wav"), soundfile.read(job.result(60)[2][0])
    assert status == 200 and rate == 24_000 and len(live) == len(generated) == 5 * rate
    assert np.abs(live - generated).max() < 1e-3
    assert server.get("/live/nothing.wav")[0] == 404


def test_stream_ends_with_the_clip_and_after_an_error() -> None:
    codec, streams = load_codec("encodec_embedded", 2), AudioStreamRegistry()
    codes = torch.randint(1, 1024, (2, 2, 40))
    codes[0, :, 25:] = 0  # after the end of the first clip
    name, stream = streams.begin(40 * 320, 24_000, 1)
    with stream_audio(stream, codec, 40, ends=True) as push:
        push(codes[:, :, :20])
        push(codes[:, :, 20:])
        push(codes)  # the next batch
    audio = asyncio.run(_all(stream))
    assert streams.find(name) is stream and audio[:4] == b"RIFF" and len(audio) == 44 + 2 * 25 * 320
    _, broken = streams.begin(320, 24_000, 1)
    with pytest.raises(RuntimeError), stream_audio(broken, codec, 1, ends=False):
        raise RuntimeError
    assert len(asyncio.run(_all(broken))) == 44


async def _all(stream: Any) -> bytes:
    return b"".join([part async for part in stream.listen()])


def test_refused_request_prints_no_traceback(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    ends = [handle_file(tone) for tone in workspace.tones[:2]]
    log = server.folder.with_suffix(".log")
    before = len(log.read_text())
    with pytest.raises(Exception, match="cubic"):
        server.client(tmp_path).predict(
            str(server.runs[0]), *ends, 2, "cubic", 0.7, 0, 1, LENGTH, 2, False, api_name="/interpolate"
        )
    assert "Traceback" not in log.read_text()[before:]


@pytest.mark.parametrize("kind", ["text", "empty", "hour"])
def test_bad_prompt_is_reported_and_the_next_one_works(
    server: Server, workspace: Workspace, tmp_path: Path, bad_prompts: dict[str, tuple[Path, str]], kind: str
) -> None:
    file, message = bad_prompts[kind]
    client = server.client(tmp_path / "down")
    with pytest.raises(Exception, match=re.escape(message)) as refused:
        generate(client, server.runs[0], file, 0)
    assert str(server.folder) not in str(refused.value)
    assert generate(client, server.runs[0], workspace.tones[0], 0)


def test_server_refuses_an_upload_beyond_the_limit(server: Server) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    for size, status in ((1 << 19, 200), (1 << 21, 413)):
        body = head + bytes(size) + b"\r\n--x--\r\n"
        request = urllib.request.Request(f"{server.address}/gradio_api/upload", body)
        request.add_header("content-type", "multipart/form-data; boundary=x")
        assert server.send(request)[0] == status
    left = [file for file in server.folder.rglob("*") if file.is_file() and file.stat().st_size > 1 << 20]
    assert not left, "a refused upload was stored"


@pytest.mark.slow
def test_uploads_and_results_expire_and_examples_stay(workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    folder = tmp_path / "tmp"
    folder.mkdir()
    overrides = ("delete_after_seconds=8", f"examples={workspace.tones[0]}")
    with running_demo([workspace.run()], folder, *overrides, stop_signal=signal.SIGTERM) as server:
        upload = handle_file(workspace.tones[1])
        client = server.client(tmp_path / "down")
        outputs = client.predict(str(server.runs[0]), upload, 1, 0.7, 0, 1, LENGTH, 0, False, api_name="/generate")
        assert len(outputs[2]) == 3 and list(folder.rglob("*-seed0.wav"))
        started = time.monotonic()
        while list(folder.rglob("*-seed0.*")) or list(folder.rglob("tone1.wav")):
            assert time.monotonic() - started < 30
            time.sleep(0.2)
        assert list(folder.rglob("tone0.wav"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({6: 5.5}, "greater than maximum value 5"),
        ({2: 9}, "greater than maximum value 8"),
        ({3: -1}, "less than minimum value 0"),
        ({7: None}, "a setting has no number"),
        ({0: "/etc"}, "not in the list of choices"),
    ],
)
def test_settings_beyond_the_limits_are_refused(
    server: Server, tmp_path: Path, change: dict[int, Any], message: str
) -> None:
    arguments = [str(server.runs[0]), None, 1, 0.7, 0, 1, LENGTH, 0, False]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(Exception, match=message):
        server.client(tmp_path).predict(*arguments, api_name="/generate")


@pytest.mark.slow
def test_slider_defaults_are_within_small_limits(workspace: Workspace, tmp_path: Path) -> None:
    """Gradio refuses a request if any slider is beyond its maximum, also one in a closed accordion."""
    (tmp_path / "folder").mkdir()
    runs = [workspace.run(frames=60), workspace.run("parallel", frames=60)]
    overrides = (
        "limits.seconds=1",
        "limits.samples=1",
        "limits.steps=2",
        "sampling.guidance=8",
        "sampling.temperature=3",
    )
    with running_demo(runs, tmp_path / "folder", f"examples={workspace.tones[0].parent}", *overrides) as small:
        config = json.loads(small.get("/config")[1])
        sliders = [part["props"] for part in config["components"] if part["type"] == "slider"]
        assert len(sliders) > 15
        numbers = [part["props"] for part in config["components"] if part["props"].get("label") in ("Samples", "Steps")]
        assert [number["value"] for number in numbers] == [1, 2, 1]
        for slider in [*sliders, *numbers]:
            assert slider["minimum"] <= slider["value"] <= slider["maximum"], slider
        stops = [slider["value"] for slider in sliders if slider["label"] == "At (seconds)"]
        assert len(set(stops)) == len(stops) and max(stops) < 1, "each keyframe has its own time"
        assert len(generate(small.client(tmp_path), runs[0], None, 0)) == 2, "a sound and its sidecar"


def test_comparison_without_a_model_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no model is selected: select one"):
        server.client(tmp_path).predict([], None, 1, 0.7, 0, 1, LENGTH, 0, False, api_name="/compare")


@pytest.mark.parametrize(
    "route", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/live/"]
)
def test_files_of_the_machine_are_not_served(server: Server, tmp_path: Path, route: str) -> None:
    (server.folder / "secret.txt").write_text("hidden text")
    weights = server.runs[0] / "export" / "model.safetensors"
    targets = ["/etc/passwd", "../../../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"]
    for target in [*targets, str(weights), str(ROOT / "conf" / "demo.yaml"), str(server.folder / "secret.txt")]:
        status, body = server.get(route + target)
        assert status in (400, 403, 404) or b"<html" in body[:300].lower(), (target, status, body[:80])
        assert b"root:" not in body and b"hidden text" not in body and b"upload_mb" not in body
    (server.folder / "secret.txt").unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1:1/a.wav", "file:///etc/passwd"])
def test_other_files_are_refused_as_uploads(server: Server, tmp_path: Path, path: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav", "url": path}
    data = [str(server.runs[0]), file, 1, 0.7, 0, 1, LENGTH, 0, False]
    status, body = server.post("/gradio_api/call/generate", {"data": data})
    if status == 200:
        events = server.get(f"/gradio_api/call/generate/{json.loads(body)['event_id']}")[1].decode()
        assert "event: error" in events and "event: complete" not in events and "root:" not in events, events


def test_page_uses_no_other_server(server: Server) -> None:
    page = urllib.request.urlopen(server.address + "/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    config = json.loads(server.get("/config")[1])
    assert config["analytics_enabled"] is False and not config.get("stylesheets")
    assert server.get("/healthz", host="evil.example")[0] == 400, "not a host name of this machine"


def test_used_port_and_missing_files_are_reported(server: Server, workspace: Workspace) -> None:
    port = server.address.rsplit(":", 1)[1]
    with pytest.raises(InputError, match=f"port={port}: cannot listen there"):
        run_command("demo", f"run={server.runs[0]}", f"port={port}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="run=nowhere: there is no such folder"):
            run_command("demo", "run=nowhere", "port=0")
    with pytest.raises(InputError, match="prompt=nowhere.wav"):
        run_command("demo", f"run={server.runs[0]}", "port=0", "examples=nowhere.wav")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limits.seconds=0", "limits.seconds=0: expected a number of 1 or more"),
        ("limits.steps=1", "limits.steps=1: expected a whole number of 2 or more"),
        ("limits.upload_mb=0", "limits.upload_mb=0: expected a number of 0.01 or more"),
        ("limits.visitor_mb=10", "limits.visitor_mb=10: expected limits.upload_mb=25 or more"),
        ("limits.storage_mb=99", "limits.storage_mb=99: expected limits.visitor_mb=250 or more"),
        ("limits.connections=2", "limits.connections=2: expected a whole number of 8 or more"),
        ("limits.body_seconds=0", "limits.body_seconds=0: expected a number of 0.1 or more"),
        ("root_path=demo", "root_path=demo: expected a path"),
        ("delete_after_seconds=-1", "delete_after_seconds=-1: expected a number of 1 or more"),
        ("sampling.temperature=[0.5,1]", "expected one number"),
        ("port=-1", "port=-1: expected a whole number from 0 to 65535"),
        ("port=abc", "port=abc: expected a whole number"),
        ("run=[]", "expected a list"),
    ],
)
def test_invalid_settings_are_reported(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command("demo", "run=nowhere", override)


def test_missing_gradio_is_reported_with_its_installation(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=re.escape('pip install -e ".[demo]"')):
        run_command("demo", f"run={workspace.run()}")
