"""The server of pipeline.demo with a page of one upload and one button, without a model; and a reverse proxy."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MB = 1 << 20
LIMITS = {
    "upload_mb": 0.25, "upload_seconds": 60, "seconds": 5, "samples": 8, "steps": 25, "waiting": 64, "storage_mb": 2,
    "visitor_mb": 0.75, "connections": 64, "visitor_connections": 32, "header_seconds": 10, "body_seconds": 10,
}  # fmt: skip


@dataclass(frozen=True)
class SmallPage:
    """A page that is being served, and its file store."""

    port: int
    store: Any

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "a.wav", files: int = 1, **headers: str) -> tuple[int, Any]:
        """Return status and parsed response of an upload."""
        body, kind = form(content, name, files)
        status, _, response = self.request("POST", "/gradio_api/upload", body, {"Content-Type": kind, **headers})
        return status, json.loads(response)

    def bytes_on_disk(self) -> int:
        """Return the total size of the files in the store."""
        total = 0
        for folder in self.store.folder.iterdir():
            with suppress(FileNotFoundError):  # deleted in the meantime
                total += sum(file.lstat().st_size for file in folder.iterdir())
        return total


def form(content: bytes, name: str = "a.wav", files: int = 1) -> tuple[bytes, str]:
    """Return a multipart form that contains the same file `files` times, and its content type."""
    part = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content
    return b"\r\n".join([part] * files) + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


@contextmanager
def small_page(
    folder: Path, *, delete_after_seconds: float = 60, allowed_hosts: tuple[str, ...] = (), root_path: str = "",
    proxies: tuple[str, ...] = ("127.0.0.1",), **changes: float,
) -> Iterator[SmallPage]:  # fmt: skip
    """Serve the page in this process. `changes` replace items of `LIMITS`."""
    import gradio as gr

    from pipeline.common.settings import parse_settings
    from pipeline.webui import server as serve
    from pipeline.webui.file_store import FileStore
    from pipeline.webui.settings import LimitSettings
    from pipeline.webui.streaming import AudioStreamRegistry

    limits = parse_settings(LimitSettings, {**LIMITS, **changes}, "limits.")
    store = FileStore(folder, round(limits.storage_mb * MB), round(limits.visitor_mb * MB), delete_after_seconds)
    previous_folder = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        with gr.Blocks(analytics_enabled=False) as blocks:
            sound, size = gr.Audio(type="filepath"), gr.Textbox(elem_id="size")
            button = gr.Button("Size", elem_id="button")
            button.click(lambda path: str(Path(path).stat().st_size), sound, size, api_name="size")
        app = serve.application(blocks, AudioStreamRegistry(), {}, store, limits, allowed_hosts, root_path)
        server, listener = serve.http_server(app, limits, proxies), serve.bind("127.0.0.1", 0)
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield SmallPage(listener.getsockname()[1], store)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
    finally:
        os.environ.pop("GRADIO_TEMP_DIR")
        if previous_folder is not None:
            os.environ["GRADIO_TEMP_DIR"] = previous_folder


@contextmanager
def reverse_proxy(port: int, host: str, prefix: str, strip: bool) -> Iterator[int]:
    """A reverse proxy in front of a port, configured like nginx. Yields its own port.

    Args:
        port: Port of the page.
        host: The public host name, forwarded as `Host`.
        prefix: The path that it serves.
        strip: Whether it removes the prefix.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.removeprefix(prefix) if strip else self.path
            forwarded = ("accept", "content-type", "origin", "sec-fetch-site", "range")
            headers = {name: value for name, value in self.headers.items() if name.lower() in forwarded}
            headers |= {"Host": host, "X-Forwarded-For": self.client_address[0], "X-Forwarded-Proto": "http"}
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, path, body or None, headers)
            response = upstream.getresponse()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            while part := response.read1():
                self.wfile.write(part)
                self.wfile.flush()
            upstream.close()

        do_GET = do_HEAD = do_POST = forward

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
