"""A local server with the parts of huggingface.co that an upload and a download use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

COMMIT = "0" * 40


class Hub:
    """Serves one repository at `address` until closed.

    Attributes:
        files: The files of the repository, by name.
        calls: The methods and paths of all requests, in order.
    """

    def __init__(self, refuse: int = 0) -> None:
        """Start the server. refuse: the HTTP status of the answer to every POST request; 0 for none."""
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.private: bool | None = None
        self.refuse = refuse
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """Store the files of a commit: it contains small files, and large files were uploaded before."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._begin()
        if self.hub.refuse:
            return self._answer({"error": "you may not write here"}, self.hub.refuse)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            repository = json.loads(body)
            self.hub.private = repository.get("private", repository.get("visibility") == "private")
            return self._answer({"url": f"{self.hub.address}/{repository['organization']}/{repository['name']}"})
        if path == "/api/validate-yaml":  # the header of the model card
            header = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            return self._answer({"errors": [] if isinstance(header, dict) else ["no header"], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            uploads = [
                {**item, "actions": {"upload": {"href": f"{self.hub.address}/object/{item['oid']}"}}}
                for item in objects
            ]
            return self._answer({"transfer": "basic", "objects": uploads})
        if path.endswith("/commit/main"):
            self.hub.commit([json.loads(line) for line in body.splitlines() if line.strip()])
            url = f"{self.hub.address}/me/tiny/commit/{COMMIT}"
            return self._answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self._answer({"error": f"nothing at {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self._begin()
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.hub.objects[self.path.rpartition("/")[2]] = body
        self._answer({})

    def do_GET(self) -> None:
        self._begin()
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "/resolve/" in path and name in self.hub.files:
            content = self.hub.files[name]
            etag = hashlib.sha256(content).hexdigest()
            return self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        if path.startswith("/api/models/me/tiny"):
            files = [
                {"rfilename": name, "path": name, "type": "file", "size": len(content), "oid": "1" * 40}
                for name, content in self.hub.files.items()
            ]
            if "/tree/" in path:
                return self._answer(files)
            return self._answer({"id": "me/tiny", "modelId": "me/tiny", "sha": COMMIT, "siblings": files, "tags": []})
        return self._answer({"error": f"nothing at {self.path}"}, 404)

    do_HEAD = do_GET

    def _begin(self) -> bytes:
        self.hub.calls.append(f"{self.command} {self.path.partition('?')[0]}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass
