"""What every request passes before Gradio sees it.

Only the routes that the page uses exist. Requests that change state come from the page itself, not from other sites. A
request names no file but those in the file store, whether the file exists or not. Bodies and answers are bounded in
size and time, and so is what one visitor does at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, RedirectResponse, Response

from pipeline.webui import hosts
from pipeline.webui.file_store import NOT_STORED, FileStore, StorageFullError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

UPLOAD, FILE, PROGRESS = "/gradio_api/upload", "/gradio_api/file=", "/gradio_api/upload_progress"
READS = re.compile(
    r"/|/healthz|/live/[\w-]+\.wav|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json"
    r"|/(static|assets|svelte)/.+"
    r"|/gradio_api/(theme\.css|info/?|app_id/?|startup-events|queue/(data|status)|heartbeat/\w+|call/\w+/\w+)"
)
CALLS = re.compile(r"/gradio_api/(queue/join|(call|run|api)/\w+/?|cancel|reset/?)")
CALL_BYTES = 256 * 1024  # of the JSON body of a call
FORM_BYTES = 64 * 1024  # of an upload beside its file
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-gradio-server")
# What the page may load and send: from and to this server only
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
SECURITY_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class RefusedError(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class RequestGuard:
    """ASGI middleware around the whole page.

    Args:
        app: the page.
        store: files that requests may name; uploads go into it.
        allowed: host names of the page.
        prefix: path under which a reverse proxy serves the page; it may pass the prefix on or remove it.
        upload_bytes: limit of one uploaded file.
        body_seconds: time limit for receiving a body.
        visitor_requests: limit of one visitor's requests at a time.
    """

    def __init__(
        self, app: Any, store: FileStore, allowed: hosts.AllowedHosts, *, prefix: str = "", upload_bytes: int,
        body_seconds: float, visitor_requests: int,
    ) -> None:  # fmt: skip
        self.app, self.store, self.allowed, self.prefix = app, store, allowed, prefix
        self.upload_bytes, self.body_seconds, self.visitor_requests = upload_bytes, body_seconds, visitor_requests
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visitor, send = visitor_of(scope), _with_security_headers(send)
        self._open[visitor] += 1
        try:
            if self._open[visitor] > self.visitor_requests:
                raise RefusedError(429, "too many requests at once: try again in a moment")
            await self._serve(scope, receive, send, visitor)
        except RefusedError as refused:
            # the body may not be read to its end: the connection is of no more use
            answer = JSONResponse({"detail": refused.message}, refused.status, {"connection": "close"})
            await answer(scope, receive, send)
        finally:
            self._open[visitor] -= 1
            if not self._open[visitor]:
                del self._open[visitor]

    async def _serve(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        headers = Headers(scope=scope)
        named = [
            value for name in ("host", "x-forwarded-host") if (value := headers.get(name, "").split(",")[0].strip())
        ]
        for host in named:
            if not self.allowed.allows(host):
                raise RefusedError(400, hosts.refusal(host))
        if self.prefix and scope["path"] == self.prefix:
            await RedirectResponse(f"{self.prefix}/")(scope, receive, send)
            return
        scope = _without_prefix(scope, self.prefix)
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD"):
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                raise RefusedError(400, "a GET request has no body")
            await self._read(scope, receive, send, path)
        elif method == "POST" and (path == UPLOAD or CALLS.fullmatch(path)):
            self._refuse_other_sites(headers, named)
            if path == UPLOAD:
                answer = JSONResponse([await self._upload(headers, receive, visitor)])
                await answer(scope, receive, send)
            else:
                await self._call(scope, receive, send)
        else:
            raise RefusedError(405, "no such method here")

    async def _read(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        if path == PROGRESS:  # small enough to need no progress bar
            await Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        elif path.startswith(FILE):
            if self.store.find(path[len(FILE) :]) is None:
                raise RefusedError(404, NOT_STORED)
            await self.app(scope, receive, send)
        elif READS.fullmatch(path):
            await self.app(scope, receive, send)
        else:
            raise RefusedError(404, "no such page here")

    def _refuse_other_sites(self, headers: Headers, named: list[str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is None and site not in ("same-origin", "none"):
            raise RefusedError(403, "requests of other sites are refused")
        if origin is not None and not self.allowed.same_origin(origin, named):
            name = hosts.hostname(origin.rpartition("//")[2])[: hosts.MAX_SHOWN]
            raise RefusedError(
                403, f"requests of other sites are refused; if the page is served as {name!r}: allowed_hosts=[{name}]"
            )

    async def _upload(self, headers: Headers, receive: Receive, visitor: str) -> str:
        """Store the one file of a form, and return its path."""
        if not headers.get("content-type", "").startswith("multipart/form-data"):
            raise RefusedError(400, "an upload is multipart/form-data with one file")
        form = None
        try:
            size = min(_declared_bytes(headers) or self.upload_bytes, self.upload_bytes)
            with self.store.reserve(visitor, size):
                body = self._body(headers, receive, self.upload_bytes + FORM_BYTES)
                form = await MultiPartParser(headers, body, max_files=1, max_fields=4, max_part_size=FORM_BYTES).parse()
                file = form.get("files")
                if not isinstance(file, UploadFile):
                    raise RefusedError(400, "an upload is multipart/form-data with one file, named `files`")
                if (file.size or 0) > self.upload_bytes:
                    raise self._too_large()
                path = await run_in_threadpool(self.store.add_upload, visitor, file.file, file.filename or "")
        except MultiPartException as error:
            raise RefusedError(400, error.message) from None
        except StorageFullError as error:
            raise RefusedError(503, str(error)) from None
        except OSError:
            raise RefusedError(507, "the disk of this server is full: tell its owner") from None
        finally:
            if form is not None:
                await form.close()
        return str(path)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a JSON call on, rewritten so that it names stored files only."""
        body = b"".join([part async for part in self._body(Headers(scope=scope), receive, CALL_BYTES)])
        try:
            call = with_stored_files(json.loads(body, parse_constant=_refuse_constant), self.store)
            body = json.dumps(call, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise RefusedError(400, "this is not a JSON call") from None
        replaced = (b"content-type", b"content-length", b"transfer-encoding")
        headers = [(name, value) for name, value in scope["headers"] if name not in replaced]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app({**scope, "headers": headers}, replay, send)

    async def _body(self, headers: Headers, receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
        """Yield a body's parts. Raises RefusedError beyond the limit of size or time.

        What is beyond the limit is read, up to as much again, so that the client sees the answer.
        """
        if _declared_bytes(headers) > 2 * limit:
            raise self._too_large()
        end = asyncio.get_running_loop().time() + self.body_seconds
        size, more = 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                raise RefusedError(408, "the request did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the connection was closed")
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > 2 * limit:
                break
            if size <= limit:
                yield message.get("body", b"")
        if size > limit:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"exceeds the maximum allowed size of {self.upload_bytes / (1 << 20):g} MB")


class TrustedProxies:
    """ASGI middleware that removes forwarding headers unless a trusted proxy sent them. trusted: tested with `in`."""

    def __init__(self, app: Any, trusted: Any) -> None:
        self.app, self.trusted = app, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] == "http" and (scope.get("client") or ("",))[0] not in self.trusted:
            headers = [(name, value) for name, value in scope["headers"] if not name.startswith(FORWARDED)]
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)


def visitor_of(scope: Scope) -> str:
    """Return the address that a visitor is counted by: of IPv6 the network, since one visitor has all of it."""
    return visitor_name((scope.get("client") or ("",))[0])


def visitor_name(address: str) -> str:
    """Return an IPv4 address, an IPv6 /64 network, or another name as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), 64), strict=False))


def with_stored_files(value: Any, store: FileStore) -> Any:
    """Return a copy of JSON in which everything with a `path` is a plain reference to a stored file.

    Raises RefusedError, the same for a file that exists and for one that does not.
    """
    if isinstance(value, dict):
        if "path" not in value:
            return {key: with_stored_files(one, store) for key, one in value.items()}
        path, name = value["path"], value.get("orig_name")
        if not isinstance(path, str) or store.find(path) is None:
            raise RefusedError(400, NOT_STORED)
        name = name if isinstance(name, str) else None
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    if isinstance(value, list):
        return [with_stored_files(one, store) for one in value]
    return value


def _without_prefix(scope: Scope, prefix: str) -> Scope:
    if not prefix or not scope["path"].startswith(f"{prefix}/"):
        return scope
    raw = scope.get("raw_path", scope["path"].encode())
    raw = raw[len(prefix) :] if raw.startswith(f"{prefix}/".encode()) else raw
    return {**scope, "path": scope["path"][len(prefix) :], "raw_path": raw}


def _with_security_headers(send: Send) -> Send:
    """Add the security headers; leave out those that would let other sites read an answer."""

    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if not pair[0].startswith(b"access-control-")]
            message["headers"] = [*kept, *SECURITY_HEADERS]
        await send(message)

    return marked


def _declared_bytes(headers: Headers) -> int:
    """Return the length of a body; 0 if it is not known before. uvicorn refuses what is not a number."""
    return int(headers.get("content-length", "0"))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
