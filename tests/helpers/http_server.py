"""A web server of a folder that counts requests, and can be slow or break connections."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from pathlib import Path


class Web(http.server.ThreadingHTTPServer):
    """The server, as a context manager.

    Attributes:
        address: of the folder.
        requests: number of requests of each file.
        pause: seconds before each 64 KiB.
        broken: number of further responses for a file that break half way.
        stalled: files for which nothing is sent.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests, self.pause = folder, Counter[str](), 0.0
        self.broken, self.stalled = Counter[str](), set[str]()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Web:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stalled.clear()
        self.shutdown()
        self.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Web

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.lstrip("/")
        file = self.server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        self.server.requests[name] += 1
        while name in self.server.stalled:
            time.sleep(0.01)
        if self.server.broken[name] > 0:
            self.server.broken[name] -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        for at in range(0, len(data), 2**16):
            time.sleep(self.server.pause)
            self.wfile.write(data[at : at + 2**16])

    def log_message(self, *_: object) -> None:
        pass
