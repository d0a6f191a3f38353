"""Attacks on the page of pipeline.demo through its API: no file of the machine is read, and nothing hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.demo_server import Server
from tests.helpers.small_page import form
from tests.helpers.trained_run import LENGTH, Workspace

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)

REFUSED = b'{"detail":"a file in this request was not uploaded here, or has been deleted since: upload it again"}'
SECRET = "hidden text"
RESPONSE_SECONDS = 5  # limit for any response


@pytest.fixture(scope="module")
def targets(server: Server, tmp_path_factory: pytest.TempPathFactory, workspace: Workspace) -> dict[str, str]:
    """Files of every kind that no visitor uploaded, by kind."""
    folder = tmp_path_factory.mktemp("secret")
    (folder / "secret.txt").write_text(SECRET)
    shutil.copy(workspace.tones[0], folder / "sound.wav")
    os.mkfifo(folder / "fifo.wav")
    (folder / "link.wav").symlink_to(folder / "sound.wav")
    (inside,) = server.folder.glob("*/files")
    (inside / "planted").mkdir(exist_ok=True)
    shutil.copy(workspace.tones[0], inside / "planted" / "regular.wav")
    for name, target in (
        ("link", folder / "secret.txt"),
        ("loop", inside / "planted" / "loop.wav"),
        ("dev", "/dev/zero"),
    ):
        (inside / "planted" / f"{name}.wav").symlink_to(target)
    os.mkfifo(inside / "planted" / "fifo.wav")
    return {
        "sound": str(folder / "sound.wav"), "text": str(folder / "secret.txt"), "missing": str(folder / "missing.wav"),
        "link": str(folder / "link.wav"), "fifo": str(folder / "fifo.wav"), "folder": str(folder), "empty": "",
        "zero": "/dev/zero", "random": "/dev/urandom", "stdin": "/dev/stdin", "memory": "/proc/self/mem",
        "environment": "/proc/self/environ", "descriptor": "/proc/self/fd/0", "passwd": "/etc/passwd",
        "weights": str(server.runs[0] / "export" / "model.safetensors"), "relative": "../../../../../etc/passwd",
        "inside": str(inside), "in regular": str(inside / "planted" / "regular.wav"),
        "in link": str(inside / "planted" / "link.wav"), "in loop": str(inside / "planted" / "loop.wav"),
        "in device": str(inside / "planted" / "dev.wav"), "in fifo": str(inside / "planted" / "fifo.wav"),
        "file address": f"file://{folder}/sound.wav", "address": "http://127.0.0.1:9/a.wav",
        "data": "data:audio/wav;base64,AA",
        "null": str(folder / "a\0.wav"), "long": "/" + "a" * 5000,
    }  # fmt: skip


@pytest.fixture(scope="module")
def endpoints(server: Server) -> list[dict[str, Any]]:
    """Every event of the page, also the private ones: id, name, default values, and which inputs are sounds."""
    config = json.loads(server.get("/config")[1])
    parts = {part["id"]: part for part in config["components"]}
    events = []
    for event in config["dependencies"]:
        inputs = [parts[i] for i in event["inputs"]]
        values = [None if part["type"] == "audio" else part["props"].get("value") for part in inputs]
        sounds = [i for i, part in enumerate(inputs) if part["type"] == "audio"]
        events.append({"id": event["id"], "name": event["api_name"], "values": values, "sounds": sounds})
    assert sum(len(event["sounds"]) for event in events) > 30
    return events


def post_in_time(server: Server, path: str, body: Any) -> tuple[int, bytes]:
    """Send a JSON request. The response must arrive in time, and the page must still work."""
    started = time.monotonic()
    response = server.post(path, body)
    assert server.get("/healthz")[0] == 200
    assert time.monotonic() - started < RESPONSE_SECONDS, path
    return response


def file_data(path: Any, **more: Any) -> dict[str, Any]:
    """Return the JSON by which clients of Gradio name a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav", **more}


def test_every_argument_of_every_event_accepts_only_uploads(
    server: Server, endpoints: list[dict[str, Any]], targets: dict[str, str]
) -> None:
    """Every route that starts an event refuses every other file with the same message."""
    calls = 0
    for number, event in enumerate(endpoints):
        for index in event["sounds"]:
            # every kind of file for one argument, and some kinds for every argument
            kinds = targets if (number, index) == (0, event["sounds"][0]) else ("sound", "zero", "in fifo")
            for kind in kinds:
                data = [*event["values"]]
                data[index] = file_data(targets[kind])
                body = {"data": data, "fn_index": event["id"], "session_hash": "attack"}
                routes = ["queue/join", f"run/{event['name']}", f"api/{event['name']}", f"call/{event['name']}"]
                for route in routes if calls < 400 else routes[:1]:
                    calls += 1
                    assert server.post(f"/gradio_api/{route}", body) == (400, REFUSED), (route, kind)
    assert server.get("/healthz")[0] == 200 and calls > 300


def test_every_kind_of_file_in_every_form_is_refused(server: Server, targets: dict[str, str]) -> None:
    """Without its type, as a stream, with a URL, nested: always the same message, without delay."""
    for kind, path in targets.items():
        for form_of in (
            file_data(path), {"path": path}, file_data(path, is_stream=True),
            file_data(path, url=f"{server.address}/x"), {"value": file_data(path)}, [[file_data(path)]],
            file_data([path]), file_data({"path": path}), {"path": path, "path ": "a", "meta": None},
        ):  # fmt: skip
            data = [str(server.runs[0]), form_of, 1, 0.7, 0, 1, LENGTH, 0, False]
            assert post_in_time(server, "/gradio_api/call/generate", {"data": data}) == (400, REFUSED), (kind, form_of)
        more = {"data": [None], "fn_index": 0, "session_hash": "a", "event_data": {"file": {"path": path}}}
        assert post_in_time(server, "/gradio_api/queue/join", more) == (400, REFUSED), kind


def test_other_forms_of_a_file_read_nothing(server: Server, targets: dict[str, str]) -> None:
    """A bare path, a URL without a path, the forms of old clients: an error without any content of the file."""
    for kind in ("sound", "missing", "zero", "in fifo", "in regular", "text"):
        responses = []
        for value in (targets[kind], {"url": targets[kind]}, {"name": targets[kind], "is_file": True, "data": None}):
            data = [str(server.runs[0]), value, 1, 0.7, 0, 1, LENGTH, 0, False]
            status, body = post_in_time(server, "/gradio_api/call/generate", {"data": data})
            assert status == 200
            response = server.get(f"/gradio_api/call/generate/{json.loads(body)['event_id']}")[1]
            assert b"event: error" in response and b"event: complete" not in response
            responses.append(response.replace(targets[kind].encode(), b""))
        assert SECRET.encode() not in b"".join(responses)


def test_only_stored_files_are_served(server: Server, targets: dict[str, str]) -> None:
    for kind, path in targets.items():
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy=", "/static/", "/svelte/"):
            started = time.monotonic()
            try:
                status, body = server.get(route + urllib.request.quote(path))
            except OSError as error:  # the request is too long
                assert kind == "long", error
                continue
            assert status in (400, 403, 404, 414) and SECRET.encode() not in body and b"RIFF" not in body, (kind, route)
            assert time.monotonic() - started < RESPONSE_SECONDS
            if route == "/gradio_api/file=" and kind != "null":
                assert (status, body) == (404, REFUSED), kind


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/stream/a"), ("POST", "/gradio_api/vibe-edit"), ("POST", "/gradio_api/vibe-code"),
        ("POST", "/login"), ("GET", "/monitoring"), ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("GET", "/gradio_api/token"), ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/custom_component/a/client/b/c"), ("GET", "/gradio_api/vibe-code"), ("GET", "/logout"),
        ("GET", "/gradio_api/stream/a/b/0/playlist-file"), ("GET", "/gradio_api/run-history/buckets"), ("GET", "/docs"),
        ("GET", "/gradio_api/file=http://127.0.0.1:9/a"), ("GET", "/gradio_api/proxy=http://127.0.0.1:9/a"),
        ("PUT", "/gradio_api/upload"), ("DELETE", "/gradio_api/file=a"), ("POST", "/gradio_api/call/v2/generate"),
    ],
)  # fmt: skip
def test_unused_routes_are_closed(server: Server, method: str, path: str) -> None:
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(server.address + path, body, {"content-type": "application/json"}, method=method)
    assert server.send(request)[0] in (404, 405)


def test_replaced_uploads_are_refused(server: Server, workspace: Workspace, targets: dict[str, str]) -> None:
    """A link, a device, a pipe, a folder or a longer file that replaces an upload is not read."""
    for kind in ("link", "device", "fifo", "folder", "grown"):
        body, content_type = form(workspace.tones[0].read_bytes())
        request = urllib.request.Request(f"{server.address}/gradio_api/upload", body, {"content-type": content_type})
        (path,) = map(Path, json.loads(server.send(request)[1]))
        content = path.read_bytes()
        assert server.get(f"/gradio_api/file={path}") == (200, content)
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "grown":
            path.write_bytes(content * 2)
        else:
            path.symlink_to(targets["sound" if kind == "link" else "zero"])
        data = [str(server.runs[0]), file_data(str(path)), 1, 0.7, 0, 1, LENGTH, 0, False]
        assert post_in_time(server, "/gradio_api/call/generate", {"data": data}) == (400, REFUSED), kind
        assert server.get(f"/gradio_api/file={path}") == (404, REFUSED), kind
        path.rmdir() if kind == "folder" else path.unlink()


def test_results_and_examples_can_be_prompts(server: Server, workspace: Workspace, endpoints: Any) -> None:
    """The page can name files again that the server has returned."""
    dropdown = next(event for event in endpoints if "tone" in str(event["values"]) and not event["sounds"])
    status, body = server.post(f"/gradio_api/run/{dropdown['name']}", {"data": ["tone1"], "fn_index": dropdown["id"]})
    assert status == 200
    prompt = json.loads(body)["data"][0]
    for _ in range(2):
        data = [str(server.runs[0]), prompt, 1, 0.7, 0, 1, LENGTH, 0, False]
        event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
        response = server.get(f"/gradio_api/call/generate/{event}")[1].decode()
        assert "event: complete" in response
        files = json.loads(response.split("event: complete\ndata: ")[1].split("\n")[0])[2]
        assert server.get(f"/gradio_api/file={files[0]['path']}")[1][:4] == b"RIFF"
        prompt = files[0]


def test_calls_cannot_skip_the_queue(server: Server) -> None:
    data = [str(server.runs[0]), None, 1, 0.7, 0, 1, LENGTH, 0, False]
    for route in ("run", "api"):
        assert server.post(f"/gradio_api/{route}/generate", {"data": data})[0] == 404


def test_closing_the_page_stops_its_generation(server: Server) -> None:
    """Generation stops soon after its client disconnects, so that the next visitor does not wait."""
    data = [str(server.runs[0]), None, 8, 0.7, 0, 1, 5, 0, False]
    event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
    with urllib.request.urlopen(f"{server.address}/gradio_api/call/generate/{event}") as stream:
        while b"onair" not in stream.readline():  # generation has started
            pass
    (requests,) = server.folder.glob("*/requests")
    started = time.monotonic()
    while list(requests.iterdir()):
        assert time.monotonic() - started < 2, "generation continues without a client"
        time.sleep(0.01)
    stopped = time.monotonic() - started
    event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
    started = time.monotonic()
    assert b"event: complete" in server.get(f"/gradio_api/call/generate/{event}")[1]
    print(f"stopped after {stopped:.2f} s; a complete request takes {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started > 2 * stopped
