"""Build the demo page from the settings of conf/demo.yaml, and serve it."""

from __future__ import annotations

from pathlib import Path

from pipeline.audio.codecs import codec_of
from pipeline.audio.codecs.base import Codec
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.webui import server
from pipeline.webui.examples import examples
from pipeline.webui.file_store import FileStore
from pipeline.webui.page import Page, build_page
from pipeline.webui.service import GenerationService
from pipeline.webui.settings import MB, DemoSettings
from pipeline.webui.streaming import AudioStreamRegistry


def serve_demo(settings: DemoSettings, folder: Path) -> None:
    """Load the models, then serve the page until Ctrl-C or SIGTERM. All files of the page are in `folder`.

    Raises:
        InputError: if a run cannot be loaded, or the port cannot be used.
    """
    listener = server.bind(settings.host, settings.port)
    service, streams = build_service(settings, folder), AudioStreamRegistry()
    first = service.loaded_runs[settings.run[0]]
    example_files = examples(settings, first, service.store)
    blocks = build_page(Page(service, streams, example_files))
    health = {"models": {name: loaded.sha256 for name, loaded in service.loaded_runs.items()}}
    app = server.application(
        blocks, streams, health, service.store, settings.limits, settings.allowed_hosts, settings.root_path
    )
    listener.listen()  # earlier, clients would wait while models are loaded
    host, port = listener.getsockname()[:2]
    print(f"{', '.join(settings.run)} on {first.device}: open http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    server.run(server.http_server(app, settings.limits, settings.proxies), listener)


def build_service(settings: DemoSettings, folder: Path) -> GenerationService:
    """Return the service with every model and codec loaded once."""
    loaded_runs = {
        run: load_run(run, settings.device, settings.codec_weights, settings.embedder_weights)
        for run in dict.fromkeys(settings.run)
    }
    requests = folder / "requests"
    requests.mkdir()
    total_bytes, visitor_bytes = round(settings.limits.storage_mb * MB), round(settings.limits.visitor_mb * MB)
    store = FileStore(folder / "files", total_bytes, visitor_bytes, settings.delete_after_seconds)
    codecs = _load_full_codecs(loaded_runs, settings.codec_weights)
    return GenerationService(loaded_runs, codecs, settings, requests, store)


def _load_full_codecs(loaded_runs: dict[str, LoadedRun], codec_weights: str | None) -> dict[str, Codec]:
    """The codec of each run with all its codebooks, by the name of the run. Runs share equal codecs."""
    codecs: dict[tuple[str, int], Codec] = {}  # by weights and channels
    for codec in (loaded.codec for loaded in loaded_runs.values()):
        if (codec.weights, codec.channels) not in codecs:
            codecs[codec.weights, codec.channels] = codec_of(codec.identity, codec.max_codebooks, codec_weights).open(
                codec.device
            )
    return {run: codecs[loaded.codec.weights, loaded.codec.channels] for run, loaded in loaded_runs.items()}
