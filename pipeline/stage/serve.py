"""The page served: no file of this machine but its own, nothing fetched from elsewhere, nothing told to anybody."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.errors import InputError
from pipeline.stage.desk import MB
from pipeline.stage.live import Channels

STYLE = (Path(__file__).parent / "page.css").read_text()
SCRIPT = (Path(__file__).parent / "page.js").read_text()
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
# What a page of ours may load and send: from and to this server only
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
Message = MutableMapping[str, Any]


class Guarded:
    """An ASGI app whose every answer carries HEADERS, and that fetches nothing for anybody."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        """Pass on, with the headers; addresses that Gradio would fetch are not there."""
        if "=http" in scope.get("path", ""):
            await JSONResponse({"detail": "not here"}, 404)(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, marked)


def silence() -> None:
    """No telemetry, before gradio is loaded."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def application(blocks: Any, channels: Channels, health: dict[str, Any], host: str, upload_mb: float) -> FastAPI:
    """The page at /, sounds on air at /live/NAME.wav, and /healthz."""
    import gradio as gr

    # what gradio refuses is told on the page, and is no fault of ours whose traceback belongs on the terminal
    gr.Error.print_exception = property(lambda self: False, lambda self, value: None)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", **health})

    @app.get("/live/{name}.wav")
    async def live(name: str) -> Response:
        channel = channels.find(name)
        if channel is None:
            return JSONResponse({"detail": "no such sound (any more)"}, 404)
        return StreamingResponse(channel.listen(), media_type="audio/wav", headers={"cache-control": "no-store"})

    app.add_middleware(Guarded)
    if host in LOOPBACK:  # a page elsewhere that names itself as this machine is not served
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=[], show_error=False, max_file_size=round(upload_mb * MB), ssr_mode=False,
        theme=_theme(), css=STYLE, head=f"<script>{SCRIPT}</script>", footer_links=[], run_history=False,
    )  # fmt: skip


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


def listening(host: str, port: int) -> socket.socket:
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


def run(app: FastAPI, at: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order by then
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run(sockets=[at])
