"""Serve the page. It serves no other file of this machine, loads nothing from the internet and sends nothing to it."""

from __future__ import annotations

import asyncio
import contextlib
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
from pipeline.evaluation.html_templates import SOUND_SCRIPT, SOUND_STYLE
from pipeline.webui.connection_limits import limited_protocol
from pipeline.webui.file_store import FileStore
from pipeline.webui.hosts import AllowedHosts
from pipeline.webui.request_guard import RequestGuard, TrustedProxies
from pipeline.webui.settings import LimitSettings
from pipeline.webui.streaming import AudioStreamRegistry

STYLE = (Path(__file__).parent / "page.css").read_text() + SOUND_STYLE
SCRIPT = (Path(__file__).parent / "page.js").read_text() + SOUND_SCRIPT
MAX_SESSIONS = 64  # whose last results Gradio keeps


def application(
    blocks: Any, streams: AudioStreamRegistry, health: dict[str, Any], store: FileStore, limits: LimitSettings,
    allowed_hosts: Sequence[str], root_path: str,
) -> RequestGuard:  # fmt: skip
    """Return the ASGI application: the page at /, streams at /live/NAME.wav, and /healthz."""
    import gradio as gr

    # gradio shows these errors on the page; they are no bugs, so no traceback is printed
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
        stream = streams.find(name)
        if stream is None:
            return JSONResponse({"detail": "there is no such sound, or it is no longer available"}, 404)
        return StreamingResponse(stream.listen(), media_type="audio/wav", headers={"cache-control": "no-store"})

    blocks.state_session_capacity = MAX_SESSIONS
    gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=[], show_error=False, max_file_size=limits.upload_bytes, ssr_mode=False,
        theme=_theme(), css=STYLE, head=f"<script>{SCRIPT}</script>", footer_links=[], run_history=False,
        root_path=root_path or None,
    )  # fmt: skip
    # Gradio's own checks of files are off until these are set, and mounting does not set them; the guard checks first
    blocks.has_launched = blocks.is_running = True
    public = urlsplit(root_path)
    allowed = AllowedHosts([*allowed_hosts, *filter(None, [public.hostname])])
    return RequestGuard(
        app, store, allowed, prefix=public.path.rstrip("/"), upload_bytes=limits.upload_bytes,
        body_seconds=limits.body_seconds, visitor_requests=limits.visitor_connections,
    )  # fmt: skip


async def _delete_expired_files(store: FileStore) -> None:
    while True:
        store.delete_expired()
        await asyncio.sleep(min(60, store.delete_after_seconds / 10))


def _theme() -> Any:
    """Plain labels, colours with a contrast of 4.5 : 1, and fonts that every machine has: none is downloaded."""
    import gradio as gr

    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    plain = {
        "block_title_background_fill": "none", "block_title_padding": "0", "block_title_text_weight": "600",
        "block_title_text_color": "*body_text_color", "block_label_background_fill": "none",
        "block_label_text_color": "*body_text_color", "block_label_shadow": "none",
    }  # fmt: skip
    light = {
        "body_background_fill": "*neutral_50", "block_border_width": "1px", "body_text_color_subdued": "*neutral_600",
        "block_info_text_color": "*neutral_600", "input_placeholder_color": "*neutral_600",
        "color_accent": "*primary_700", "link_text_color": "*primary_700", "slider_color": "*primary_700",
        "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
        "button_primary_text_color": "white", "checkbox_background_color_selected": "*primary_700",
        "checkbox_border_color_selected": "*primary_700", "checkbox_label_background_fill_selected": "*primary_700",
        "checkbox_label_text_color_selected": "white",
        "input_border_color": "*neutral_400", "input_border_width": "1px",
    }  # fmt: skip
    dark = {
        name: value for name, value in plain.items() if not name.endswith(("padding", "weight", "shadow"))
    } | {
        "body_text_color_subdued": "*neutral_300", "block_info_text_color": "*neutral_300",
        "input_placeholder_color": "*neutral_300", "link_text_color": "*primary_300", "slider_color": "*primary_400",
        "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
        "button_primary_text_color": "white", "checkbox_label_background_fill_selected": "*primary_700",
        "checkbox_background_color_selected": "*primary_700", "checkbox_label_text_color_selected": "white",
    }  # fmt: skip
    values = plain | light | {f"{name}_dark": value for name, value in dark.items()}
    return gr.themes.Soft(primary_hue="fuchsia", neutral_hue="zinc", font=font, font_mono=mono).set(**values)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to host and port; port 0: any free one. Raises InputError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError(f"host={host} port={port}: cannot listen there ({error}); give another, or port=0") from None
    return listener


def http_server(app: RequestGuard, limits: LimitSettings, proxies: Sequence[str]) -> uvicorn.Server:
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


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # raised again after uvicorn has shut down
        server.run(sockets=[listener])
