"""`python -m pipeline.demo`: a real server, asked by real clients: its sounds, its limits, its secrets."""

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
from pipeline.webui.streaming import AudioStreamRegistry, stream_audio
from tests.helpers.demo_server import Server, serving
from tests.helpers.preprocess_runs import ROOT
from tests.helpers.trained_run import LENGTH, Workspace, run_command

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)


def generate(
    client: Any, run: Path, prompt: Path | None, seed: int, samples: int = 1, seconds: float = LENGTH
) -> list[Path]:
    """The files that the tab Generate gives."""
    from gradio_client import handle_file

    given = None if prompt is None else handle_file(prompt)
    answer = client.predict(str(run), given, samples, 0.7, 0, 1, seconds, seed, False, api_name="/generate")
    assert answer[3] == seed
    return [Path(file) for file in answer[2]]


def test_it_answers_a_health_check_with_the_models_it_plays(server: Server) -> None:
    status, body = server.get("/healthz")
    models = json.loads(body)["models"]
    assert status == 200 and list(models) == list(map(str, server.runs))
    assert all(len(sha256) == 64 for sha256 in models.values())


def test_its_sound_is_that_of_the_command_line_and_the_downloads_make_it_again(
    server: Server, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, together = server.client(tmp_path / "down"), tmp_path / "together"
    together.mkdir()
    for seconds in (LENGTH, 1.1):  # a clip whole, and a piece longer than the clips of training
        files = generate(client, server.runs[0], workspace.tones[1], 5, 2, seconds)
        assert [file.name for file in files] == [
            "sound-1.wav",
            "sound-1.json",
            "sound-2.wav",
            "sound-2.json",
            "tone1.wav",
        ]
        for file in files:
            shutil.copy(file, together)
        monkeypatch.chdir(together)
        mode = "mode=continue" if seconds > LENGTH else "mode=prompt"
        words = (f"run={server.runs[0]}", "prompt=tone1.wav", mode, f"seconds={seconds}", "seed=6", "out=alone.wav")
        assert run_command("generate", *words) == 0
        assert (together / "alone.wav").read_bytes() == (together / "sound-2.wav").read_bytes()
        assert run_command("generate", "from=sound-1.json", "out=again.wav") == 0
        assert (together / "again.wav").read_bytes() == (together / "sound-1.wav").read_bytes()
        assert str(server.folder) not in (together / "sound-1.json").read_text()


def test_the_command_line_that_it_shows_makes_the_same(
    server: Server, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import handle_file

    client, tones = server.client(tmp_path / "down"), [handle_file(tone) for tone in workspace.tones[:2]]
    run, knobs = str(server.runs[1]), (0.9, 50, 1.5, LENGTH, 3, False)
    stops = (0, tones[0], 0.3, tones[1], 2, None, 2, None)
    answers = {
        "interpolate": client.predict(run, *tones, 4, "slerp", *knobs, api_name="/interpolate"),
        "morph": client.predict(run, "linear", *stops, *knobs, api_name="/morph")[1:],
    }
    for name, (html, files, seed) in answers.items():
        place = tmp_path / name
        place.mkdir()
        for file in files:
            shutil.copy(file, place)
        monkeypatch.chdir(place)
        (place / "sound.wav").rename(place / "page.wav")
        line = re.search("<pre>(.*)</pre>", html, re.S)
        assert line and seed == 3
        words = shlex.split(unescape(line.group(1)))
        assert words[:3] == ["python", "-m", "pipeline.generate"] and run_command("generate", *words[3:]) == 0
        assert (place / "sound.wav").read_bytes() == (place / "page.wav").read_bytes()
        assert html.count("<audio") == {"interpolate": 1 + 1 + 4 + 1, "morph": 1 + 2}[name]


@pytest.mark.parametrize("crowd", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_many_at_once_each_get_their_own_sound(
    server: Server, workspace: Workspace, tmp_path: Path, crowd: int
) -> None:
    tone = workspace.tones[2]
    words = (f"run={server.runs[0]}", f"prompt={tone}", f"seconds={LENGTH}", f"n={crowd}", f"out={tmp_path / 'alone'}")
    assert run_command("generate", *words) == 0
    alone = [(tmp_path / "alone" / f"tone2-{seed + 1}.wav").read_bytes() for seed in range(crowd)]
    assert len(set(alone)) == crowd

    def ask(seed: int) -> bytes:
        return generate(server.client(tmp_path / str(seed)), server.runs[0], tone, seed)[0].read_bytes()

    with ThreadPoolExecutor(crowd) as people:
        assert list(people.map(ask, range(crowd))) == alone
    assert not list(server.folder.glob("*/asked/*")), "a request has left its folder behind"


def test_models_side_by_side_play_the_same_seeds(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    runs, tone = list(map(str, server.runs)), handle_file(workspace.tones[0])
    html, seed = server.client(tmp_path).predict(runs, tone, 2, 0.7, 0, 1, LENGTH, 8, False, api_name="/compare")
    assert seed == 8 and html.count("<figcaption>seed 8 ") == html.count("<figcaption>seed 9 ") == 2
    assert "delay, 2 codebooks" in html and "parallel, 2 codebooks" in html
    sounds = re.findall(r"audio/flac;base64,([^\"]*)", html)
    assert len(set(sounds)) == len(sounds) == 5


def test_the_codec_is_heard_at_every_number_of_codebooks(server: Server, workspace: Workspace, tmp_path: Path) -> None:
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
    distances = [float(found) for found in re.findall(r"([\d.]+) dB away<?", html)][:3]
    assert len(distances) == 3 and distances[0] > distances[2]


def test_it_is_heard_while_it_is_made(server: Server, workspace: Workspace, tmp_path: Path) -> None:
    """The player's address comes before the sound is whole; what it plays is the sound, but for the last bit or two."""
    from gradio_client import handle_file

    job = server.client(tmp_path).submit(
        str(server.runs[0]), handle_file(workspace.tones[0]), 1, 0.7, 0, 1, 5, 2, False, api_name="/generate"
    )
    while not job.outputs():
        assert not job.done(), job.result()
        time.sleep(0.02)
    name = re.search(r'src="(live/[^"]+)"', job.outputs()[0][0])
    assert name and not job.done()
    status, heard = server.get(f"/{name.group(1)}")
    (tmp_path / "heard.wav").write_bytes(heard)
    (live, rate), (made, _) = soundfile.read(tmp_path / "heard.wav"), soundfile.read(job.result(60)[2][0])
    assert status == 200 and rate == 24_000 and len(live) == len(made) == 5 * rate
    assert np.abs(live - made).max() < 1e-3
    assert server.get("/live/nothing.wav")[0] == 404


def test_a_channel_ends_with_the_clip_and_where_its_making_fails() -> None:
    codec, channels = load_codec("encodec_embedded", 2), AudioStreamRegistry()
    codes = torch.randint(1, 1024, (2, 2, 40))
    codes[0, :, 25:] = 0  # behind the end of the first clip
    name, channel = channels.begin(40 * 320, 24_000)
    with stream_audio(channel, codec, 40, ends=True) as take:
        take(codes[:, :, :20])
        take(codes[:, :, 20:])
        take(codes)  # the next batch
    heard = asyncio.run(_all(channel))
    assert channels.find(name) is channel and heard[:4] == b"RIFF" and len(heard) == 44 + 2 * 25 * 320
    _, broken = channels.begin(320, 24_000)
    with pytest.raises(RuntimeError), stream_audio(broken, codec, 1, ends=False):
        raise RuntimeError
    assert len(asyncio.run(_all(broken))) == 44


async def _all(channel: Any) -> bytes:
    return b"".join([part async for part in channel.listen()])


def test_what_gradio_refuses_leaves_no_traceback_on_the_terminal(
    server: Server, workspace: Workspace, tmp_path: Path
) -> None:
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
def test_what_is_no_prompt_is_named_and_the_next_is_played(
    server: Server, workspace: Workspace, tmp_path: Path, spoiled: dict[str, tuple[Path, str]], kind: str
) -> None:
    file, message = spoiled[kind]
    client = server.client(tmp_path / "down")
    with pytest.raises(Exception, match=re.escape(message)) as refused:
        generate(client, server.runs[0], file, 0)
    assert str(server.folder) not in str(refused.value)
    assert generate(client, server.runs[0], workspace.tones[0], 0)


def test_an_upload_beyond_the_limit_is_refused_by_the_server_too(server: Server) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    for size, status in ((1 << 19, 200), (1 << 21, 413)):
        body = head + bytes(size) + b"\r\n--x--\r\n"
        request = urllib.request.Request(f"{server.address}/gradio_api/upload", body)
        request.add_header("content-type", "multipart/form-data; boundary=x")
        assert server.ask(request)[0] == status
    left = [file for file in server.folder.rglob("*") if file.is_file() and file.stat().st_size > 1 << 20]
    assert not left, "what was refused was kept"


@pytest.mark.slow
def test_uploads_and_results_are_deleted_after_a_while_and_examples_stay(workspace: Workspace, tmp_path: Path) -> None:
    from gradio_client import handle_file

    folder = tmp_path / "tmp"
    folder.mkdir()
    words = ("delete_after_seconds=2", f"examples={workspace.tones[0]}")
    with serving([workspace.run()], folder, *words, end=signal.SIGTERM) as server:
        given = handle_file(workspace.tones[1])
        client = server.client(tmp_path / "down")
        answer = client.predict(str(server.runs[0]), given, 1, 0.7, 0, 1, LENGTH, 0, False, api_name="/generate")
        assert len(answer[2]) == 3 and list(folder.rglob("sound.wav"))
        started = time.monotonic()
        while list(folder.rglob("sound.*")) or list(folder.rglob("tone1.wav")):
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
    given = [str(server.runs[0]), None, 1, 0.7, 0, 1, LENGTH, 0, False]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(Exception, match=message):
        server.client(tmp_path).predict(*given, api_name="/generate")


@pytest.mark.slow
def test_every_slider_of_a_small_page_and_a_long_model_stands_within_its_ends(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Gradio refuses a request for any slider beyond its end, even in a tab's accordion that nobody has opened."""
    (tmp_path / "folder").mkdir()
    runs = [workspace.run(frames=60), workspace.run("parallel", frames=60)]
    words = ("limits.seconds=1", "limits.samples=1", "limits.steps=2", "sampling.guidance=8", "sampling.temperature=3")
    with serving(runs, tmp_path / "folder", f"examples={workspace.tones[0].parent}", *words) as small:
        config = json.loads(small.get("/config")[1])
        sliders = [part["props"] for part in config["components"] if part["type"] == "slider"]
        assert len(sliders) > 15
        numbers = [part["props"] for part in config["components"] if part["props"].get("label") in ("Samples", "Steps")]
        assert [number["value"] for number in numbers] == [1, 2, 1]
        for slider in [*sliders, *numbers]:
            assert slider["minimum"] <= slider["value"] <= slider["maximum"], slider
        stops = [slider["value"] for slider in sliders if slider["label"] == "At (seconds)"]
        assert len(set(stops)) == len(stops) and max(stops) < 1, "each keyframe is heard"
        assert len(generate(small.client(tmp_path), runs[0], None, 0)) == 2, "a sound and its sidecar"


def test_a_comparison_of_no_model_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no model is chosen: tick one"):
        server.client(tmp_path).predict([], None, 1, 0.7, 0, 1, LENGTH, 0, False, api_name="/compare")


@pytest.mark.parametrize("way", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/live/"])
def test_it_serves_no_file_of_the_machine(server: Server, tmp_path: Path, way: str) -> None:
    (server.folder / "secret.txt").write_text("hidden words")
    weights = server.runs[0] / "export" / "model.safetensors"
    targets = ["/etc/passwd", "../../../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"]
    for target in [*targets, str(weights), str(ROOT / "conf" / "demo.yaml"), str(server.folder / "secret.txt")]:
        status, body = server.get(way + target)
        assert status in (400, 403, 404) or b"<html" in body[:300].lower(), (target, status, body[:80])
        assert b"root:" not in body and b"hidden words" not in body and b"upload_mb" not in body
    (server.folder / "secret.txt").unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1:1/a.wav", "file:///etc/passwd"])
def test_it_takes_no_file_of_the_machine_or_of_another_for_an_upload(server: Server, tmp_path: Path, path: str) -> None:
    given = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav", "url": path}
    data = [str(server.runs[0]), given, 1, 0.7, 0, 1, LENGTH, 0, False]
    status, body = server.post("/gradio_api/call/generate", {"data": data})
    if status == 200:
        said = server.get(f"/gradio_api/call/generate/{json.loads(body)['event_id']}")[1].decode()
        assert "event: error" in said and "event: complete" not in said and "root:" not in said, said


def test_it_sends_and_fetches_nothing_elsewhere(server: Server) -> None:
    page = urllib.request.urlopen(server.address + "/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    config = json.loads(server.get("/config")[1])
    assert config["analytics_enabled"] is False and not config.get("stylesheets")
    assert server.get("/healthz", host="evil.example")[0] == 400, "a name that is not this machine's"


def test_a_port_that_is_taken_and_a_model_that_is_not_there_are_told_in_one_line(
    server: Server, workspace: Workspace
) -> None:
    port = server.address.rsplit(":", 1)[1]
    with pytest.raises(InputError, match=f"port={port}: cannot be listened on"):
        run_command("demo", f"run={server.runs[0]}", f"port={port}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="run=nowhere: there is no such folder"):
            run_command("demo", "run=nowhere", "port=0")
    with pytest.raises(InputError, match="prompt=nowhere.wav"):
        run_command("demo", f"run={server.runs[0]}", "port=0", "examples=nowhere.wav")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("limits.seconds=0", "limits.seconds=0: give 1 or more"),
        ("limits.steps=1", "limits.steps=1: give 2 or more"),
        ("limits.upload_mb=0", "limits.upload_mb=0: give 0.01 or more"),
        ("limits.visitor_mb=10", "limits.visitor_mb=10: give limits.upload_mb=25 or more"),
        ("limits.storage_mb=99", "limits.storage_mb=99: give limits.visitor_mb=250 or more"),
        ("limits.connections=2", "limits.connections=2: give 8 or more"),
        ("limits.body_seconds=0", "limits.body_seconds=0: give 0.1 or more"),
        ("root_path=demo", "root_path=demo: give a path"),
        ("delete_after_seconds=-1", "delete_after_seconds=-1: give 1 or more"),
        ("port=-1", "cannot be listened on"),
    ],
)
def test_numbers_that_make_no_page_are_told_in_one_line(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command("demo", "run=nowhere", word)


def test_without_gradio_it_says_how_to_get_it(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=re.escape('pip install -e ".[demo]"')):
        run_command("demo", f"run={workspace.run()}")
