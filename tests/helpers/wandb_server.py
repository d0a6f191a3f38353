"""A W&B server for tests: speaks as much GraphQL, file stream and uploading as `wandb` needs, and remembers it.

`down` makes it answer 503 to everything, as an outage does.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KEY = "0" * 40


class Server(ThreadingHTTPServer):
    """Runs, by id: their config, history rows, files, artifacts, alerts and how they ended."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.down = False
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
        """`wandb` drops its connections without a word: so do we."""

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

    def answer(self, operation: str, given: dict[str, Any], query: str) -> dict[str, Any]:
        """What a GraphQL operation gets back."""
        self.operations.append(operation)
        known = getattr(self, f"on_{operation}", None)
        return known(given) if known else empty(query)

    def on_Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        person = {"id": "u1", "entity": "lab", "username": "lab", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": person}

    def on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.run(given["name"])
        new, run["new"] = run["new"], False
        run.update(
            {key: given[key] for key in ("displayName", "groupName", "tags", "jobType", "commit") if given.get(key)}
        )
        run["config"].update(json.loads(given.get("config") or "{}"))
        project = {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}}
        bucket = {
            "id": "r-" + given["name"],
            "name": given["name"],
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

    def on_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None or run["new"]:
            return {"model": {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}, "bucket": None}}
        lines = [line for _, line in sorted(run["history"].items())]
        bucket = {
            "id": "r-" + given["name"],
            "name": given["name"],
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
            "wandbConfig": "{}",
        }
        return {"model": {"id": "p1", "name": "tests", "entity": {"id": "e1", "name": "lab"}, "bucket": bucket}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        names = given.get("files", [])
        made = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": made}}

    def on_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        number = f"a{len(self.artifacts)}"
        names = given.get("artifactCollectionNames") or [given.get("artifactCollectionName")]
        self.artifacts[number] = {**given, "name": names[0], "committed": False}
        state = {"id": number, "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
        return {"createArtifact": {"artifact": state}}

    def on_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        file = {"id": "f", "name": given["name"], "displayName": given["name"], "uploadHeaders": []}
        file["uploadUrl"] = f"{self.url}/upload/manifest/{given['artifactID']}"
        return {"createArtifactManifest": {"artifactManifest": {"id": "m-" + given["artifactID"], "file": file}}}

    def on_UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given.get("artifactManifestID", "m-x").removeprefix("m-")
        file = {"id": "f", "name": "manifest", "displayName": "manifest", "uploadHeaders": []}
        file["uploadUrl"] = f"{self.url}/upload/manifest/{number}"
        return {"updateArtifactManifest": {"artifactManifest": {"id": "m-" + number, "file": file}}}

    def on_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in given.get("artifactFiles", given.get("input", {}).get("artifactFiles", [])):
            place = f"{self.url}/upload/artifact/{spec['artifactID']}/{spec['name']}"
            node = {
                "id": "f",
                "name": spec["name"],
                "displayName": spec["name"],
                "uploadUrl": place,
                "storagePath": spec["name"],
            }
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        self.artifacts[given["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def on_UseArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        self.artifacts[given["artifactID"]]["used_by"] = given["runName"]
        return {"useArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def on_NotifyScriptableRunAlert(self, given: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        new, self.views[name] = name not in self.views, {**given, "id": f"v-{name}"}
        return {"upsertView": {"view": {"id": f"v-{name}", "name": name}, "inserted": new}}

    def on_View(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self.views.get(given["viewName"])
        edges = [{"node": {key: found[key] for key in ("id", "name", "displayName", "spec")}}] if found else []
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


def empty(query: str) -> dict[str, Any]:
    """An answer that says nothing: each field that the operation asks for first is null."""
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
        if self.server.down:
            self.server.refused += 1
            self._send({"errors": [{"message": "down for maintenance"}]}, 503)
            return
        with self.server.lock:
            if path == "/graphql":
                asked = json.loads(body)
                found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                operation = asked.get("operationName") or (found.group(1) if found else "")
                self._send({"data": self.server.answer(operation, asked.get("variables") or {}, asked["query"])})
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
