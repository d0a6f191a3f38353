"""Check every request before Gradio receives it.

Only the routes that the page uses exist. Requests that change state must come from the page itself, not from other
sites. A request can name only files of the file store; the response is the same whether another file exists or not.
Bodies are limited in size and time, and so is the number of requests that one visitor has open.
"""

from __future__ import annotations

import asyncio
import contextlib
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
GET_PATHS = re.compile(
    r"/|/healthz|/live/[\w-]+\.wav|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json"
    r"|/(static|assets|svelte)/.+"
    r"|/gradio_api/(theme\.css|info/?|app_id/?|startup-events|queue/(data|status)|heartbeat/\w+|call/\w+/\w+)"
)
CALL_PATHS = re.compile(r"/gradio_api/(queue/join|(call|run|api)/\w+/?|cancel|reset/?)")
CALL_BYTES = 256 * 1024  # of the JSON body of a call
FORM_BYTES = 64 * 1024  # of an upload, without its file
LINGER_SECONDS = 1  # for which the rest of a refused body is read
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-gradio-server")
# The page may load from this server and send to it only
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
SECURITY_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class RefusedError(Exception):
    """A request that is refused with a status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class RequestGuard:
    """ASGI middleware around the whole page.

    Args:
        app: the page.
        store: files that requests may name; uploads go into it.
        allowed: host names of the page.
        prefix: path under which a reverse proxy serves the page; it may keep or remove the prefix.
        upload_bytes: limit of one uploaded file.
        body_seconds: time limit for receiving a body.
        visitor_requests: limit of one visitor's open requests.
    """

    def __init__(
        self, app: Any, store: FileStore, allowed: hosts.AllowedHosts, *, prefix: str = "", upload_bytes: int,
        body_seconds: float, visitor_requests: int,
    ) -> None:  # fmt: skip
        self.app, self.store, self.allowed, self.prefix = app, store, allowed, prefix
        self.upload_bytes, self.body_seconds, self.visitor_requests = upload_bytes, body_seconds, visitor_requests
        self._open_requests: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the page, or respond with the reason why it is refused."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visitor, body, send = visitor_of(scope), _Body(receive), _with_security_headers(send)
        self._open_requests[visitor] += 1
        try:
            if self._open_requests[visitor] > self.visitor_requests:
                raise RefusedError(429, "too many requests at the same time: try again in a moment")
            await self._handle(scope, body.receive, send, visitor)
        except RefusedError as refused:
            await _refuse(refused, body, send)
        finally:
            self._open_requests[visitor] -= 1
            if not self._open_requests[visitor]:
                del self._open_requests[visitor]

    async def _handle(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        headers = Headers(scope=scope)
        request_hosts = [
            value for name in ("host", "x-forwarded-host") if (value := headers.get(name, "").split(",")[0].strip())
        ]
        for host in request_hosts:
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
            await self._handle_get(scope, receive, send, path)
        elif method == "POST" and (path == UPLOAD or CALL_PATHS.fullmatch(path)):
            self._check_origin(headers, request_hosts)
            if path == UPLOAD:
                response = JSONResponse([await self._handle_upload(headers, receive, visitor)])
                await response(scope, receive, send)
            else:
                await self._handle_call(scope, receive, send)
        else:
            raise RefusedError(405, "no such method here")

    async def _handle_get(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        if path == PROGRESS:  # small enough to need no progress bar
            await Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        elif path.startswith(FILE):
            if self.store.find(path[len(FILE) :]) is None:
                raise RefusedError(404, NOT_STORED)
            await self.app(scope, receive, send)
        elif GET_PATHS.fullmatch(path):
            await self.app(scope, receive, send)
        else:
            raise RefusedError(404, "no such page here")

    def _check_origin(self, headers: Headers, request_hosts: list[str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is None and site not in ("same-origin", "none"):
            raise RefusedError(403, "requests of other sites are refused")
        if origin is not None and not self.allowed.same_origin(origin, request_hosts):
            name = hosts.hostname(origin.rpartition("//")[2])[: hosts.MAX_SHOWN]
            raise RefusedError(
                403, f"requests of other sites are refused; if the page is served as {name!r}: allowed_hosts=[{name}]"
            )

    async def _handle_upload(self, headers: Headers, receive: Receive, visitor: str) -> str:
        """Store the one file of a form, and return its path."""
        if not headers.get("content-type", "").startswith("multipart/form-data"):
            raise RefusedError(400, "an upload is multipart/form-data with one file")
        form = None
        try:
            size = min(_declared_bytes(headers) or self.upload_bytes, self.upload_bytes)
            with self.store.reserve(visitor, size):
                body = self._read_body(headers, receive, self.upload_bytes + FORM_BYTES)
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
            raise RefusedError(507, "the disk of this server is full: contact its owner") from None
        finally:
            if form is not None:
                await form.close()
        return str(path)

    async def _handle_call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a JSON call, rewritten so that it names stored files only."""
        body = b"".join([part async for part in self._read_body(Headers(scope=scope), receive, CALL_BYTES)])
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

    async def _read_body(self, headers: Headers, receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
        """Yield a body's parts. Raises RefusedError beyond the limit of size or time.

        Up to twice the limit is read, so that the client receives the response.
        """
        if _declared_bytes(headers) > 2 * limit:
            raise self._too_large()
        end = asyncio.get_running_loop().time() + self.body_seconds
        size, more = 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
            except TimeoutError:
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


class _Body:
    """Receives a request's body, and knows whether it has arrived to its end. receive: of the request."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


async def _refuse(refused: RefusedError, body: _Body, send: Send) -> None:
    """Respond with a refusal, and close the connection.

    What still arrives is read for a moment: a connection closed with unread data is reset, and the response is lost.
    """
    response = JSONResponse({"detail": refused.message}, refused.status, {"connection": "close"})
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while not body.ended:
                await body.receive()
    await send({"type": "http.response.body", "body": b""})


class TrustedProxies:
    """ASGI middleware that removes forwarding headers unless a trusted proxy sent them. trusted: tested with `in`."""

    def __init__(self, app: Any, trusted: Any) -> None:
        self.app, self.trusted = app, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request."""
        if scope["type"] == "http" and (scope.get("client") or ("",))[0] not in self.trusted:
            headers = [(name, value) for name, value in scope["headers"] if not name.startswith(FORWARDED)]
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)


def visitor_of(scope: Scope) -> str:
    """Return the name that a visitor is counted by. For IPv6 it is the network, since one visitor can use all of it."""
    return visitor_name((scope.get("client") or ("",))[0])


def visitor_name(address: str) -> str:
    """Return an IPv4 address, an IPv6 /64 network, or any other name unchanged."""
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
            return {key: with_stored_files(item, store) for key, item in value.items()}
        path, name = value["path"], value.get("orig_name")
        if not isinstance(path, str) or store.find(path) is None:
            raise RefusedError(400, NOT_STORED)
        name = name if isinstance(name, str) else None
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    if isinstance(value, list):
        return [with_stored_files(item, store) for item in value]
    return value


def _without_prefix(scope: Scope, prefix: str) -> Scope:
    if not prefix or not scope["path"].startswith(f"{prefix}/"):
        return scope
    raw_path = scope.get("raw_path", scope["path"].encode())
    raw_path = raw_path[len(prefix) :] if raw_path.startswith(f"{prefix}/".encode()) else raw_path
    return {**scope, "path": scope["path"][len(prefix) :], "raw_path": raw_path}


def _with_security_headers(send: Send) -> Send:
    """Add the security headers; remove those that let other sites read a response."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if not pair[0].startswith(b"access-control-")]
            message["headers"] = [*kept, *SECURITY_HEADERS]
        await send(message)

    return send_with_headers


def _declared_bytes(headers: Headers) -> int:
    """Return the length of a body; 0 if it is unknown. uvicorn refuses values that are not numbers."""
    return int(headers.get("content-length", "0"))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
