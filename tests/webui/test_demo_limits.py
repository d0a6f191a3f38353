"""Limits of the server of pipeline.demo: disk, other sites, slow clients; and its use behind a reverse proxy."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.browser import browser, until
from tests.helpers.small_page import MB, SmallPage, form, reverse_proxy, small_page

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install -e ".[demo]"', allow_module_level=True)

CALL = json.dumps({"data": [None], "fn_index": 0, "session_hash": "a"}).encode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPage]:
    """One page for the tests that change no setting."""
    with small_page(tmp_path_factory.mktemp("page") / "files", allowed_hosts=("demo.example.org",)) as served:
        yield served


def test_uploads_never_exceed_the_disk_limits(tmp_path: Path) -> None:
    """Files on disk never exceed storage_mb, a visitor's files never visitor_mb, and the newest upload is kept."""
    with small_page(tmp_path / "files") as page:
        max_bytes, stopped = 0, threading.Event()

        def measure() -> None:
            nonlocal max_bytes
            while not stopped.is_set():
                max_bytes = max(max_bytes, page.bytes_on_disk())
                time.sleep(0.01)

        def upload(i: int) -> tuple[int, list[str]]:
            visitor = f"10.0.0.{i % 6}"
            return page.upload(bytes(200_000), f"{visitor}-{i}.wav", **{"X-Forwarded-For": visitor})

        watcher = threading.Thread(target=measure)
        watcher.start()
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(upload, range(40)))
        stopped.set()
        watcher.join()
        assert {status for status, _ in responses} <= {200, 503}
        assert sum(status == 200 for status, _ in responses) > 15
        assert max_bytes <= 2 * MB and page.bytes_on_disk() > MB
        for visitor in range(6):
            newest = [file for file in page.store.folder.glob("*/*") if file.name.startswith(f"10.0.0.{visitor}-")]
            assert sum(file.stat().st_size for file in newest) <= 0.75 * MB
        status, (path,) = page.upload(b"new")
        assert status == 200 and page.store.find(path) == Path(path)


def test_number_of_small_files_is_limited(page: SmallPage) -> None:
    paths = [page.upload(b"x")[1][0] for _ in range(20)]
    assert [page.store.find(path) is not None for path in paths] == [False] * 8 + [True] * 12  # 0.75 MB of 64 KB each
    assert len(list(page.store.folder.iterdir())) <= 12, "empty folders were not deleted"


@pytest.mark.parametrize("files", [0, 2, 20])
def test_an_upload_is_one_file(page: SmallPage, files: int) -> None:
    before = page.bytes_on_disk()
    assert page.upload(bytes(1000), files=files)[0] == 400
    assert page.bytes_on_disk() <= before


def test_failed_uploads_leave_no_files(page: SmallPage) -> None:
    before = page.bytes_on_disk()
    for size in (MB // 4 + 1, MB // 2):
        body, kind = form(bytes(size))
        status, _, response = page.request("POST", "/gradio_api/upload", body, {"Content-Type": kind})
        assert status == 413 and b"maximum allowed size of 0.25 MB" in response
    for declared in (2 * MB, int("1" * 30)):
        headers = {"Content-Length": str(declared), "Content-Type": kind}
        assert page.request("POST", "/gradio_api/upload", b"x", headers)[0] in (400, 413)
    body, kind = form(bytes(200_000))
    with socket.create_connection(("127.0.0.1", page.port)) as client:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:150_000])
    assert page.upload(b"next")[0] == 200
    assert page.bytes_on_disk() <= before + 4


def test_refusal_arrives_while_the_body_is_sent(page: SmallPage) -> None:
    """A client that sends its whole body before it reads still receives the response."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", page.port), timeout=20) as client:
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 * MB}\r\n"
            client.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
            time.sleep(0.01)  # the refusal is on its way
            client.sendall(bytes(2 * MB))
            response = b"".join(iter(lambda client=client: client.recv(65536), b""))
            assert response.startswith(b"HTTP/1.1 413") and b"maximum allowed size of 0.25 MB" in response


def test_upload_names_stay_inside_the_folder(page: SmallPage) -> None:
    for name in (
        "../../a.wav",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\\..\\b.wav",
        "\x01.wav",
        "x" * 999 + ".wav",
        "é" * 300,
    ):
        status, response = page.upload(b"sound", name)
        if status == 200:
            assert Path(response[0]).parent.parent == page.store.folder
            assert Path(response[0]).read_bytes() == b"sound" and Path(response[0]).resolve() == Path(response[0])
        else:
            assert status == 400


def test_old_files_are_deleted_and_examples_stay(tmp_path: Path) -> None:
    (tmp_path / "tone.wav").write_bytes(b"tone")
    with small_page(tmp_path / "files", delete_after_seconds=0.5) as page:
        example = page.store.add_example(tmp_path / "tone.wav", "tone.wav")
        _, (path,) = page.upload(b"sound")
        started = time.monotonic()
        while Path(path).exists():
            assert time.monotonic() - started < 10
            time.sleep(0.05)
        assert page.store.find(path) is None and page.store.find(example) == example


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/size",
                                  "/gradio_api/run/size", "/gradio_api/cancel", "/gradio_api/reset"])  # fmt: skip
def test_other_sites_cannot_change_anything(page: SmallPage, path: str) -> None:
    body, kind = form(b"sound") if path.endswith("upload") else (CALL, "text/plain")
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://evil.example:{page.port}"},
        {"Origin": f"http://127.0.0.1:{page.port + 1}"}, {"Origin": "http://[x"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        status, response_headers, response = page.request("POST", path, body, {"Content-Type": kind, **headers})
        assert status == 403 and b"other sites are refused" in response
        assert not [name for name in response_headers if name.lower().startswith("access-control")]
    for headers in ({"Origin": f"http://127.0.0.1:{page.port}", "Sec-Fetch-Site": "same-origin"}, {}):
        assert page.request("POST", path, body, {"Content-Type": kind, **headers})[0] not in (403, 405)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert page.request(method, path, body)[0] == 405


def test_other_sites_cannot_read_anything(page: SmallPage) -> None:
    for path in ("/config", "/gradio_api/info", "/"):
        status, headers, _ = page.request("GET", path, headers={"Origin": "http://evil.example"})
        assert status == 200 and not [name for name in headers if name.lower().startswith("access-control")]


def test_calls_that_are_not_json_are_refused(page: SmallPage) -> None:
    for body in (b"", b"[", b"\xff", b"NaN", b'{"data": [1e999]}', b"[" * 100_000, b'{"data": [' + b"9" * 6000 + b"]}"):
        assert page.request("POST", "/gradio_api/queue/join", body, JSON)[0] == 400, body[:20]
    assert page.request("POST", "/gradio_api/queue/join", b" " * 300_000, JSON)[0] == 413
    assert page.request("GET", "/healthz", b"body")[0] == 400


def test_slow_clients_are_disconnected(tmp_path: Path) -> None:
    """Headers, a body and the reading of a response have time limits; afterwards the page still works."""
    with small_page(tmp_path / "files", header_seconds=0.5, body_seconds=0.5) as page:
        clients = [socket.create_connection(("127.0.0.1", page.port), 10) for _ in range(4)]
        _, header, keep_alive, body = clients
        header.sendall(b"GET / HTTP/1.1\r\nHo")
        keep_alive.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in keep_alive.recv(65536)
        keep_alive.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        body.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        started = time.monotonic()
        assert b"408" in body.recv(65536)
        assert [_until_closed(client) for client in clients] == [True] * 4
        assert time.monotonic() - started < 5
        with socket.socket() as slow_reader:
            slow_reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow_reader.connect(("127.0.0.1", page.port))
            slow_reader.sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
            time.sleep(5)  # even a busy machine fills the buffers, and stalls, in this time
            expected = 2000 * len(page.request("GET", "/config")[2])  # more than fits into all buffers
            assert _read_until_closed(slow_reader) < expected, "a client that stops reading is disconnected"
        assert page.request("GET", "/healthz")[0] == 200


def test_number_of_connections_is_limited(tmp_path: Path) -> None:
    with small_page(tmp_path / "files", proxies=(), connections=20, visitor_connections=10) as page:
        clients = [socket.create_connection(("127.0.0.1", page.port), 10) for _ in range(15)]
        closed = [_until_closed(client, 0.2) for client in clients]
        assert sum(closed) == 5
        for client in clients:
            client.close()
        time.sleep(0.1)
        assert page.request("GET", "/healthz")[0] == 200
    with small_page(tmp_path / "files", connections=12, visitor_connections=10) as page:
        clients = [socket.create_connection(("127.0.0.1", page.port), 10) for _ in range(15)]
        assert sum(_until_closed(client, 0.2) for client in clients) == 3, (
            "a trusted proxy is exempt from the limit per address"
        )


def test_requests_of_one_visitor_are_limited(tmp_path: Path) -> None:
    with small_page(tmp_path / "files", visitor_connections=8) as page:
        clients = []
        for i in range(8):
            clients.append(socket.create_connection(("127.0.0.1", page.port), 10))
            clients[-1].sendall(f"GET /gradio_api/heartbeat/h{i} HTTP/1.1\r\nHost: localhost\r\n".encode())
            clients[-1].sendall(b"X-Forwarded-For: 2001:db8::1\r\n\r\n")
            assert b"200 OK" in clients[-1].recv(65536)
        assert page.request("GET", "/healthz", headers={"X-Forwarded-For": "2001:db8::2"})[0] == 429
        assert page.request("GET", "/healthz", headers={"X-Forwarded-For": "2001:db8:1::2"})[0] == 200
        for client in clients:
            client.close()
        time.sleep(0.2)
        assert page.request("GET", "/healthz", headers={"X-Forwarded-For": "2001:db8::2"})[0] == 200


def _until_closed(client: socket.socket, seconds: float = 10) -> bool:
    """Return whether the server closes the connection within this time."""
    client.settimeout(seconds)
    try:
        _read_until_closed(client)
    except TimeoutError:
        return False
    return True


def _read_until_closed(client: socket.socket) -> int:
    """Read until the connection is closed, and return the number of bytes."""
    size = 0
    try:
        while part := client.recv(1 << 20):
            size += len(part)
    except ConnectionError:
        pass
    return size


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200), ("localhost", 200), ("[::1]:7860", 200), ("192.168.1.5", 200),
        (socket.gethostname(), 200), ("demo.example.org", 200), ("DEMO.example.org.:443", 200),
        ("evil.example", 400), ("demo.example.org.evil.example", 400), ("127.0.0.1.evil.example", 400), ("a[", 400),
    ],
)  # fmt: skip
def test_only_host_names_of_the_page_are_served(page: SmallPage, host: str, status: int) -> None:
    assert page.request("GET", "/healthz", headers={"Host": host})[0] == status
    assert page.request("GET", "/healthz", headers={"X-Forwarded-Host": host})[0] == status


def test_refusal_of_a_host_name_suggests_the_setting(page: SmallPage) -> None:
    _, _, response = page.request("GET", "/", headers={"Host": "music.example:8443"})
    message = "host name 'music.example' is not allowed: start the page with allowed_hosts=[music.example]"
    assert json.loads(response) == {"detail": message}
    headers = {"Origin": "https://music.example", "Content-Type": "application/json"}
    status, _, response = page.request("POST", "/gradio_api/queue/join", CALL, headers)
    assert status == 403 and "allowed_hosts=[music.example]" in json.loads(response)["detail"]


def test_full_root_path_is_the_address_of_all_links(tmp_path: Path) -> None:
    with small_page(tmp_path / "files", root_path="https://demo.example.org/music") as page:
        for headers in ({"Host": "demo.example.org"}, {}):
            status, _, config = page.request("GET", "/music/config", headers=headers)
            assert status == 200 and json.loads(config)["root"] == "https://demo.example.org/music"


def test_untrusted_forwarding_headers_are_ignored(tmp_path: Path) -> None:
    """Without a trusted proxy a client can choose neither its address nor the public name."""
    forged = {
        "X-Forwarded-For": "10.1.1.1",
        "X-Forwarded-Host": "evil.example",
        "X-Gradio-Server": "http://evil.example",
    }
    with small_page(tmp_path / "files", proxies=()) as page:
        status, _, config = page.request("GET", "/config", headers=forged)
        assert status == 200 and b"evil.example" not in config
        assert all(page.upload(bytes(200_000), **forged)[0] == 200 for _ in range(5))
        assert page.bytes_on_disk() <= 0.75 * MB


@pytest.mark.parametrize("strip", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_browser_uses_the_page_behind_a_reverse_proxy(tmp_path: Path, strip: bool) -> None:
    """The page works under another host name and a path, whether the proxy removes the path or not."""
    (tmp_path / "tone.wav").write_bytes(b"RIFF" + bytes(96))
    name = "localhost" if strip else "demo.localhost"
    with (
        small_page(tmp_path / "files", allowed_hosts=(name,), root_path="/music") as page,
        reverse_proxy(page.port, name, "/music", strip) as port,
        browser() as window,
    ):
        window.open(f"http://{name}:{port}/music/")
        until(window, "document.querySelector('input[type=file]')")
        window.choose("input[type=file]", tmp_path / "tone.wav")
        until(window, "document.body.innerText.includes('tone') || document.querySelector('audio')")
        window.run("document.querySelector('#button').click(); done()")
        until(window, "document.querySelector('#size textarea')?.value === '100'")
        requests = window.run("done(performance.getEntriesByType('resource').map((r) => r.name))")
        own = [url for url in requests if url.startswith(f"http://{name}:{port}/music/")]
        calls = [url for url in requests if "/gradio_api/" in url or "/assets/" in url or url.endswith("/config")]
        assert len(calls) > 5 and set(calls) <= set(own)
        assert page.request("GET", "/music")[1]["location"] == "/music/"
