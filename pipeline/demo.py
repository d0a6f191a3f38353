"""Open a page to play with trained models in a browser.

  python -m pipeline.demo run=quickstart/run                                      then open http://127.0.0.1:7860
  python -m pipeline.demo run=RUN examples=[moo.wav,drill.mp3] port=8080
  python -m pipeline.demo 'run=[runs/delay_gpt2,runs/flatten_gpt2]' device=cuda:0  several, side by side

Tabs: Generate (upload, record or pick a sound; hear what is made while it is made), Interpolate (from one sound to
another, step by step), Morph (one piece through several sounds), Codec (what is lost with 1, 2, 3... codebooks),
Compare (the same prompt and seeds by several models). Every sound can be downloaded with its .json; the same settings
give the same bytes as `python -m pipeline.generate`, whose command line stands below each result.

Only this machine reaches the page unless host= says otherwise (host=0.0.0.0: everybody who reaches this machine; there
is no password). Behind a reverse proxy, name its host: allowed_hosts=[demo.example.org], and its path in root_path=.
Uploads and results are bounded by limits.storage_mb= and limits.visitor_mb=, and deleted after delete_after_seconds=
and at the end. Requests name only files that were uploaded here. The page fetches nothing from the internet and
sends nothing to anybody.
GET /healthz answers when models are loaded. Needs: pip install -e ".[demo]"

What people change: run=, host=, port=, examples=, limits.seconds=, limits.upload_mb=, sampling.temperature=, device=.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline.common.paths import CONF
from pipeline.config.cli import hydra_command

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.webui.service import GenerationService


@hydra_command("demo")
def main(cfg: DictConfig) -> None:
    """Load the models, then serve the page until it is stopped."""
    import importlib.util
    import logging
    import os
    import signal
    import tempfile
    from pathlib import Path

    from pipeline.common.errors import InputError

    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs gradio, which is not installed: pip install -e ".[demo]"')
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: uploads and results are deleted
    runs = [str(run) for run in cfg.run]
    with tempfile.TemporaryDirectory(prefix="codec-audio-lm-demo-") as name:
        folder = Path(name)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
        _serve_demo(cfg, runs, folder)


def _serve_demo(cfg: DictConfig, runs: list[str], folder: Path) -> None:
    """Serve the page; all its files lie in the folder."""
    from pipeline.webui import server

    server.disable_telemetry()
    _check(cfg)

    from pipeline.webui.examples import examples
    from pipeline.webui.handlers import Handlers
    from pipeline.webui.layout import DemoContext, build_ui
    from pipeline.webui.streaming import AudioStreamRegistry

    at = server.bind(cfg.host, cfg.port)
    desk, channels = _build_service(cfg, runs, folder), AudioStreamRegistry()
    first = desk.instruments[runs[0]]
    sounds = examples(cfg.examples, cfg.split, cfg["count"], runs[0], first, desk.store)
    blocks = build_ui(DemoContext(Handlers(desk, channels), sounds, desk.sampling))
    health = {"models": {name: one.sha256 for name, one in desk.instruments.items()}}
    app = server.application(
        blocks, channels, health, desk.store, desk.limits, cfg.allowed_hosts, cfg.root_path.rstrip("/")
    )
    at.listen()  # who comes from now on is served
    host, port = at.getsockname()[:2]
    print(f"{', '.join(runs)} on {first.device}: open http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    server.run(server.http_server(app, desk.limits, cfg.proxies), at)


def _check(cfg: DictConfig) -> None:
    """Raises InputError for numbers that no page can be made with."""
    from pipeline.common.errors import InputError
    from pipeline.common.settings import require_min

    limits: dict[str, Any] = {f"limits.{name}": value for name, value in cfg.limits.items()}
    require_min(1, limits, "limits.upload_seconds", "limits.seconds", "limits.samples", "limits.waiting")
    require_min(2, limits, "limits.steps")
    require_min(0.01, limits, "limits.upload_mb")
    require_min(8, limits, "limits.connections", "limits.visitor_connections")  # a browser opens 6
    require_min(0.1, limits, "limits.header_seconds", "limits.body_seconds")
    require_min(1, cfg, "delete_after_seconds", "count")
    for small, large in (("upload_mb", "visitor_mb"), ("visitor_mb", "storage_mb")):
        if cfg.limits[large] < cfg.limits[small]:
            value = cfg.limits[large]
            raise InputError(f"limits.{large}={value}: give limits.{small}={cfg.limits[small]} or more")
    root_path = str(cfg.root_path)
    if root_path and not root_path.startswith(("/", "http://", "https://")):
        raise InputError(f"root_path={root_path}: give a path (/demo) or a full address (https://example.org/demo)")


def _build_service(cfg: DictConfig, runs: list[str], folder: Path) -> GenerationService:
    """Every model and codec, loaded once."""
    from omegaconf import OmegaConf

    from pipeline.audio.codecs import load_codec
    from pipeline.audio.codecs.base import Codec
    from pipeline.common.errors import InputError
    from pipeline.generation.loaded_run import load_run
    from pipeline.webui.file_store import FileStore
    from pipeline.webui.service import MB, GenerationService, Limits

    defaults = {key: value for key, value in _settings("generate").items() if key != "defaults"}
    defaults["sampling"] = _settings("sampling/default")
    sampling: dict[str, Any] = OmegaConf.to_container(cfg.sampling)  # type: ignore[assignment]
    if not isinstance(sampling["temperature"], (int, float)):
        raise InputError(
            f"sampling.temperature={sampling['temperature']}: the page has one slider for all codebooks: give one"
        )
    instruments = {
        run: load_run(run, cfg.device, cfg.codec_weights, cfg.embedder_weights) for run in dict.fromkeys(runs)
    }
    whole: dict[str, Codec] = {}
    for one in (instrument.codec for instrument in instruments.values()):
        if one.weights not in whole:
            whole[one.weights] = load_codec(one.name, one.model.quantizer.n_q, cfg.codec_weights, one.device)
    codecs = {run: whole[instrument.codec.weights] for run, instrument in instruments.items()}
    (folder / "asked").mkdir()
    limits = Limits(**OmegaConf.to_container(cfg.limits))  # type: ignore[arg-type]
    store = FileStore(
        folder / "files", round(limits.storage_mb * MB), round(limits.visitor_mb * MB), cfg.delete_after_seconds
    )
    return GenerationService(instruments, codecs, defaults, sampling, limits, cfg.chunk, folder / "asked", store)


def _settings(name: str) -> dict[str, Any]:
    """A file of conf/: Hydra, which is at work, composes no second config."""
    import yaml

    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


if __name__ == "__main__":
    main()
