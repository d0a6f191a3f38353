"""The page served: no file of this machine but its own, nothing fetched from elsewhere, nothing told to anybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from pipeline.common.errors import InputError
from pipeline.webui.connection_limits import limited_protocol
from pipeline.webui.file_store import FileStore
from pipeline.webui.hosts import AllowedHosts
from pipeline.webui.request_guard import RequestGuard, TrustedProxies
from pipeline.webui.service import MB, Limits
from pipeline.webui.streaming import AudioStreamRegistry

STYLE = (Path(__file__).parent / "page.css").read_text()
SCRIPT = (Path(__file__).parent / "page.js").read_text()
SESSIONS = 64  # of which Gradio remembers the last results


def disable_telemetry() -> None:
    """No telemetry, before gradio is loaded."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def application(
    blocks: Any, channels: AudioStreamRegistry, health: dict[str, Any], store: FileStore, limits: Limits,
    allowed_hosts: Sequence[str], root_path: str,
) -> RequestGuard:  # fmt: skip
    """The page at /, sounds on air at /live/NAME.wav, and /healthz."""
    import gradio as gr

    # what gradio refuses is told on the page, and is no fault of ours whose traceback belongs on the terminal
    gr.Error.print_exception = property(lambda self: False, lambda self, value: None)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_delete_expired_files(store))
        yield
        task.cancel()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", **health})

    @app.get("/live/{name}.wav")
    async def live(name: str) -> Response:
        channel = channels.find(name)
        if channel is None:
            return JSONResponse({"detail": "no such sound (any more)"}, 404)
        return StreamingResponse(channel.listen(), media_type="audio/wav", headers={"cache-control": "no-store"})

    blocks.state_session_capacity = SESSIONS
    upload_bytes = round(limits.upload_mb * MB)
    gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=[], show_error=False, max_file_size=upload_bytes, ssr_mode=False,
        theme=_theme(), css=STYLE, head=f"<script>{SCRIPT}</script>", footer_links=[], run_history=False,
        root_path=root_path or None,
    )  # fmt: skip
    # Gradio's own checks of files, a second line behind the guard, are off until these are set; mounting never does it
    blocks.has_launched = blocks.is_running = True
    public = urlsplit(root_path)
    allowed = AllowedHosts([*allowed_hosts, *filter(None, [public.hostname])])
    return RequestGuard(
        app, store, allowed, prefix=public.path.rstrip("/"), upload_bytes=upload_bytes,
        body_seconds=limits.body_seconds, visitor_requests=limits.visitor_connections,
    )  # fmt: skip


async def _delete_expired_files(store: FileStore) -> None:
    while True:
        store.delete_expired()
        await asyncio.sleep(min(60, store.keep_seconds / 10))


def _theme() -> Any:
    """Calm labels, and fonts that every machine has: none is fetched."""
    import gradio as gr

    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    plain = {
        "block_title_background_fill": "none",
        "block_title_padding": "0",
        "block_title_text_color": "*body_text_color",
        "block_title_text_weight": "600",
        "block_label_background_fill": "none",
        "block_label_text_color": "*body_text_color",
        "block_label_shadow": "none",
    }
    plain |= {
        f"{name}_dark": value for name, value in plain.items() if not name.endswith(("padding", "weight", "shadow"))
    }
    return gr.themes.Soft(primary_hue="fuchsia", neutral_hue="zinc", font=font, font_mono=mono).set(**plain)


def bind(host: str, port: int) -> socket.socket:
    """A socket at host and port; 0 takes a free one. Raises InputError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        found.close()
        raise InputError(f"host={host} port={port}: cannot be listened on ({error}); give another, or port=0") from None
    return found


def http_server(app: RequestGuard, limits: Limits, proxies: Sequence[str]) -> uvicorn.Server:
    """Return the server of an application. proxies: addresses whose X-Forwarded headers are trusted."""
    forwarded = ProxyHeadersMiddleware(app, list(proxies))  # type: ignore[arg-type]
    trusted = forwarded.trusted_hosts
    http = limited_protocol(
        limits.header_seconds, limits.body_seconds, limits.connections, limits.visitor_connections, trusted
    )
    config = uvicorn.Config(
        TrustedProxies(forwarded, trusted), http=http, ws="none", proxy_headers=False, log_level="error",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    return uvicorn.Server(config)


def run(server: uvicorn.Server, at: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order by then
        server.run(sockets=[at])
