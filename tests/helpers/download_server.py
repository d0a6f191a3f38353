"""A local HTTP server with the faults of real servers."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """files: contents by path. faults: the faults of the next GETs of a path, one each; later ones succeed.

    Faults: "503", "503 after 1" (Retry-After), "404", "break N" (the connection ends after N bytes of the body),
    "whole" (ranges are ignored), "no length", "claim N" (declares N bytes), "hang" (silence), "gone range" (416),
    "slow" (10 kB at a time).
    ranges, etags, md5: whether the server supports them. requests: every GET, as (path, first byte).
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    md5: bool = False
    requests: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""

    def etag(self, path: str) -> str:
        return f'"{hashlib.sha256(self.files[path]).hexdigest()[:16]}"'


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        content = self.site.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self._state(content or b"")
        self.end_headers()

    def do_GET(self) -> None:
        site = self.site
        byte_range = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(byte_range[1]) if byte_range else 0
        site.requests.append((self.path, first))
        faults = site.faults.get(self.path, [])
        fault, _, number = (faults.pop(0) if faults else "").partition(" ")
        content = site.files.get(self.path)
        if fault == "503":
            return self._refuse(503, {"Retry-After": number.removeprefix("after ")} if number else {})
        if content is None or fault == "404":
            return self._refuse(404)
        stale = self.headers.get("If-Range", site.etag(self.path)) != site.etag(self.path)
        if not site.ranges or fault == "whole" or stale:
            byte_range, first = None, 0
        if fault == "gone" or (byte_range and first >= len(content)):
            return self._refuse(416, {"Content-Range": f"bytes */{len(content)}"})
        body = content[first:]
        self.send_response(206 if byte_range else 200)
        if byte_range:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if site.etags:
            self.send_header("ETag", site.etag(self.path))
        self._state(content)
        if fault != "no":
            self.send_header("Content-Length", number if fault == "claim" else str(len(body)))
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "hang":
            threading.Event().wait(2)
        if fault == "break":
            body = body[: int(number)]
        if fault == "slow":
            for start in range(0, len(body), 10_000):
                self.wfile.write(body[start : start + 10_000])
                threading.Event().wait(0.02)
        else:
            self.wfile.write(body)
        return None

    def _state(self, content: bytes) -> None:
        if self.site.md5:
            sums = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={sums}")

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
