"""A W&B server for tests: the GraphQL, file stream and uploads that `wandb` needs, stored in memory.

`down` makes it answer 503 to everything, as an outage does; `hangs` makes it answer nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY = "0" * 40


class Server(ThreadingHTTPServer):
    """Runs, by id: their config, history rows, files, artifacts, alerts and how they ended."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.down = self.hangs = False
        self.refused = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.files: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Ignore that `wandb` drops its connections."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables under which `wandb` talks to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def run(self, name: str) -> dict[str, Any]:
        return self.runs.setdefault(name, {"history": {}, "summary": {}, "config": {}, "ended": None, "new": True})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The history of a run, in the order of its lines."""
        return [json.loads(line) for _, line in sorted(self.run(name)["history"].items())]

    def answer(self, operation: str, variables: dict[str, Any], query: str) -> dict[str, Any]:
        """The answer to a GraphQL operation."""
        self.operations.append(operation)
        known = getattr(self, f"on_{operation}", None)
        return known(variables) if known else empty(query)

    def on_Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        person = {"id": "u1", "entity": "lab", "username": "lab", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": person}

    def on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.run(variables["name"])
        new, run["new"] = run["new"], False
        run.update(
            {
                key: variables[key]
                for key in ("displayName", "groupName", "tags", "jobType", "commit")
                if variables.get(key)
            }
        )
        run["config"].update(json.loads(variables.get("config") or "{}"))
        project = {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}}
        bucket = {
            "id": "r-" + variables["name"],
            "name": variables["name"],
            "displayName": run.get("displayName"),
            "project": project,
        }
        bucket |= {
            "description": None,
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "historyLineCount": len(run["history"]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None or run["new"]:
            return {"model": {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}, "bucket": None}}
        lines = [line for _, line in sorted(run["history"].items())]
        bucket = {
            "id": "r-" + variables["name"],
            "name": variables["name"],
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
        }
        bucket |= {
            "logLineCount": 0,
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "tags": run.get("tags", []),
        }
        bucket |= {
            "summaryMetrics": json.dumps(run["summary"]),
            "config": json.dumps(run["config"]),
            "wandbConfig": json.dumps({"t": 1}),  # a run without it has not begun
        }
        return {"model": {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}, "bucket": bucket}}

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        names = variables.get("files", [])
        artifact = [{"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": artifact}}

    def on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables.get("input", variables)
        number = f"a{len(self.artifacts)}"
        names = variables.get("artifactCollectionNames") or [variables.get("artifactCollectionName")]
        self.artifacts[number] = {**variables, "name": names[0], "committed": False}
        state = {"id": number, "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
        return {"createArtifact": {"artifact": state}}

    def on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables.get("input", variables)
        file = {"id": "f", "name": variables["name"], "displayName": variables["name"], "uploadHeaders": []}
        file["uploadUrl"] = f"{self.url}/upload/manifest/{variables['artifactID']}"
        return {"createArtifactManifest": {"artifactManifest": {"id": "m-" + variables["artifactID"], "file": file}}}

    def on_UpdateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables.get("artifactManifestID", "m-x").removeprefix("m-")
        file = {"id": "f", "name": "manifest", "displayName": "manifest", "uploadHeaders": []}
        file["uploadUrl"] = f"{self.url}/upload/manifest/{number}"
        return {"updateArtifactManifest": {"artifactManifest": {"id": "m-" + number, "file": file}}}

    def on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in variables.get("artifactFiles", variables.get("input", {}).get("artifactFiles", [])):
            url_of_file = f"{self.url}/upload/artifact/{spec['artifactID']}/{spec['name']}"
            node = {
                "id": "f",
                "name": spec["name"],
                "displayName": spec["name"],
                "uploadUrl": url_of_file,
                "storagePath": spec["name"],
            }
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables.get("input", variables)
        self.artifacts[variables["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}

    def on_NotifyScriptableRunAlert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        new, self.views[name] = name not in self.views, {**variables, "id": f"v-{name}"}
        return {"upsertView": {"view": {"id": f"v-{name}", "name": name}, "inserted": new}}

    def on_View(self, variables: dict[str, Any]) -> dict[str, Any]:
        view = self.views.get(variables["viewName"])
        edges = [{"node": {key: view[key] for key in ("id", "name", "displayName", "spec")}}] if view else []
        return {"project": {"allViews": {"edges": edges}}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """The file stream: lines of the history by their number, the summary, the end."""
        run = self.run(name)
        for file, part in sent.get("files", {}).items():
            lines = {part["offset"] + i: line for i, line in enumerate(part["content"])}
            if file == "wandb-history.jsonl":
                run["history"].update(lines)
            elif file == "wandb-summary.json" and part["content"]:
                run["summary"] = json.loads(part["content"][-1])
        if sent.get("complete"):
            run["ended"] = sent.get("exitcode")
        if sent.get("preempting"):
            run["preempting"] = True


def sync(server: Server, *folders: Path) -> subprocess.CompletedProcess[str]:
    """`jobs/sync_wandb.sh FOLDERS`, from another folder."""
    script = Path(__file__).parents[2] / "jobs" / "sync_wandb.sh"
    env = {**os.environ, **server.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(script), *map(str, folders)], env=env, cwd="/", text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def empty(query: str) -> dict[str, Any]:
    """An empty answer: the first field of the operation is null."""
    fields = re.findall(r"^\s{1,4}(\w+)", query.split("{", 1)[-1], re.MULTILINE)
    return dict.fromkeys(fields[:1])


class Handler(BaseHTTPRequestHandler):
    """GraphQL, the file stream, uploads."""

    server: Server
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Any, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        while self.server.hangs:
            time.sleep(0.1)
        if self.server.down:
            self.server.refused += 1
            self._send({"errors": [{"message": "down for maintenance"}]}, 503)
            return
        with self.server.lock:
            if path == "/graphql":
                request = json.loads(body)
                match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
                operation = request.get("operationName") or (match.group(1) if match else "")
                self._send({"data": self.server.answer(operation, request.get("variables") or {}, request["query"])})
            elif path.endswith("/file_stream"):
                self.server.stream(path.split("/")[-2], json.loads(body))
                self._send({})
            elif path.startswith("/upload/"):
                self.server.files[path.removeprefix("/upload/")] = body
                self._send({})
            else:
                self._send({}, 404)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, *_: Any) -> None:
        """Silence."""
