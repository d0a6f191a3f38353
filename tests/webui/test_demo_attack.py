"""The page of pipeline.demo attacked through its API: no file of the machine is read, nothing hangs."""

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
SECRET = "hidden words"
RUN_SECONDS = 5  # in which any answer comes


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
    """Every event of the page, the private ones too: its id, name, inputs' types and defaults."""
    config = json.loads(server.get("/config")[1])
    parts = {part["id"]: part for part in config["components"]}
    found = []
    for event in config["dependencies"]:
        inputs = [parts[i] for i in event["inputs"]]
        values = [None if one["type"] == "audio" else one["props"].get("value") for one in inputs]
        sounds = [i for i, one in enumerate(inputs) if one["type"] == "audio"]
        found.append({"id": event["id"], "name": event["api_name"], "values": values, "sounds": sounds})
    assert sum(len(one["sounds"]) for one in found) > 30
    return found


def timed(server: Server, path: str, body: Any) -> tuple[int, bytes]:
    """An answer that comes in time, after which the page still answers."""
    started = time.monotonic()
    answer = server.post(path, body)
    assert server.get("/healthz")[0] == 200
    assert time.monotonic() - started < RUN_SECONDS, path
    return answer


def file_data(path: Any, **more: Any) -> dict[str, Any]:
    """A file as clients of Gradio name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav", **more}


def test_every_argument_of_every_event_takes_uploads_only(
    server: Server, endpoints: list[dict[str, Any]], targets: dict[str, str]
) -> None:
    """The same sentence whatever is named, by every route that starts an event."""
    calls = 0
    for number, event in enumerate(endpoints):
        for index in event["sounds"]:
            # every kind by one argument, and every argument by some kinds
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
    """Without its mark, as a stream, with an address, nested, beside a good one: the same sentence, and no wait."""
    for kind, path in targets.items():
        for form_of in (
            file_data(path), {"path": path}, file_data(path, is_stream=True),
            file_data(path, url=f"{server.address}/x"), {"value": file_data(path)}, [[file_data(path)]],
            file_data([path]), file_data({"path": path}), {"path": path, "path ": "a", "meta": None},
        ):  # fmt: skip
            data = [str(server.runs[0]), form_of, 1, 0.7, 0, 1, LENGTH, 0, False]
            assert timed(server, "/gradio_api/call/generate", {"data": data}) == (400, REFUSED), (kind, form_of)
        more = {"data": [None], "fn_index": 0, "session_hash": "a", "event_data": {"file": {"path": path}}}
        assert timed(server, "/gradio_api/queue/join", more) == (400, REFUSED), kind


def test_other_forms_of_a_file_read_nothing(server: Server, targets: dict[str, str]) -> None:
    """A bare path, an address without a path, the forms of old clients: an error that tells nothing."""
    for kind in ("sound", "missing", "zero", "in fifo", "in regular", "text"):
        answers = []
        for value in (targets[kind], {"url": targets[kind]}, {"name": targets[kind], "is_file": True, "data": None}):
            data = [str(server.runs[0]), value, 1, 0.7, 0, 1, LENGTH, 0, False]
            status, body = timed(server, "/gradio_api/call/generate", {"data": data})
            assert status == 200
            answer = server.get(f"/gradio_api/call/generate/{json.loads(body)['event_id']}")[1]
            assert b"event: error" in answer and b"event: complete" not in answer
            answers.append(answer.replace(targets[kind].encode(), b""))
        assert SECRET.encode() not in b"".join(answers)


def test_no_file_is_served_but_stored_ones(server: Server, targets: dict[str, str]) -> None:
    for kind, path in targets.items():
        for way in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy=", "/static/", "/svelte/"):
            started = time.monotonic()
            try:
                status, body = server.get(way + urllib.request.quote(path))
            except OSError as error:  # longer than a request may be
                assert kind == "long", error
                continue
            assert status in (400, 403, 404, 414) and SECRET.encode() not in body and b"RIFF" not in body, (kind, way)
            assert time.monotonic() - started < RUN_SECONDS
            if way == "/gradio_api/file=" and kind != "null":
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
def test_routes_that_the_page_does_not_use_are_closed(server: Server, method: str, path: str) -> None:
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(server.address + path, body, {"content-type": "application/json"}, method=method)
    assert server.ask(request)[0] in (404, 405)


def test_an_upload_that_becomes_something_else_is_refused(
    server: Server, workspace: Workspace, targets: dict[str, str]
) -> None:
    """A link, a device, a pipe, a folder or a longer file in an upload's place is not read."""
    for kind in ("link", "device", "fifo", "folder", "grown"):
        body, content_type = form(workspace.tones[0].read_bytes())
        request = urllib.request.Request(f"{server.address}/gradio_api/upload", body, {"content-type": content_type})
        (path,) = map(Path, json.loads(server.ask(request)[1]))
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
        assert timed(server, "/gradio_api/call/generate", {"data": data}) == (400, REFUSED), kind
        assert server.get(f"/gradio_api/file={path}") == (404, REFUSED), kind
        path.rmdir() if kind == "folder" else path.unlink()


def test_a_result_and_an_example_can_be_the_next_prompt(server: Server, workspace: Workspace, endpoints: Any) -> None:
    """What this server itself hands out is named again by the page."""
    pick = next(one for one in endpoints if "tone" in str(one["values"]) and not one["sounds"])
    status, body = server.post(f"/gradio_api/run/{pick['name']}", {"data": ["tone1"], "fn_index": pick["id"]})
    assert status == 200
    prompt = json.loads(body)["data"][0]
    for _ in range(2):
        data = [str(server.runs[0]), prompt, 1, 0.7, 0, 1, LENGTH, 0, False]
        event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
        answer = server.get(f"/gradio_api/call/generate/{event}")[1].decode()
        assert "event: complete" in answer
        files = json.loads(answer.split("event: complete\ndata: ")[1].split("\n")[0])[2]
        assert server.get(f"/gradio_api/file={files[0]['path']}")[1][:4] == b"RIFF"
        prompt = files[0]


def test_calls_do_not_pass_the_queue_by(server: Server) -> None:
    data = [str(server.runs[0]), None, 1, 0.7, 0, 1, LENGTH, 0, False]
    for route in ("run", "api"):
        assert server.post(f"/gradio_api/{route}/generate", {"data": data})[0] == 404


def test_a_closed_page_stops_what_is_being_made_for_it(server: Server) -> None:
    """Eight samples of 5 s take longer than a second; the next visitor does not wait for them."""
    data = [str(server.runs[0]), None, 8, 0.7, 0, 1, 5, 0, False]
    event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
    with urllib.request.urlopen(f"{server.address}/gradio_api/call/generate/{event}") as stream:
        while b"onair" not in stream.readline():  # it is being made
            pass
    (rooms,) = server.folder.glob("*/asked")
    started = time.monotonic()
    while list(rooms.iterdir()):
        assert time.monotonic() - started < 2, "it goes on without a listener"
        time.sleep(0.01)
    stopped = time.monotonic() - started
    event = json.loads(server.post("/gradio_api/call/generate", {"data": data})[1])["event_id"]
    started = time.monotonic()
    assert b"event: complete" in server.get(f"/gradio_api/call/generate/{event}")[1]
    print(f"stopped after {stopped:.2f} s; whole it takes {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started > 2 * stopped
