"""Open a page to play with trained models in a browser.

  python -m pipeline.demo run=quickstart/run                                      then open http://127.0.0.1:7860
  python -m pipeline.demo run=RUN examples=[moo.wav,drill.mp3] port=8080
  python -m pipeline.demo 'run=[runs/delay_gpt2,runs/flatten_gpt2]' device=cuda:0  compare several models

Tabs: Generate (upload, record or pick a sound; the result plays while it is generated), Interpolate (from one sound to
another in steps), Morph (one piece through several sounds), Codec (the loss with 1, 2, 3... codebooks), Compare (the
same prompt and seeds with several models). Every sound can be downloaded with its .json; the same settings give the
same bytes as `python -m pipeline.generate`, whose command line is shown below each result.

Only this machine can open the page. With host=0.0.0.0 every machine that reaches this one can; there is no password.
Behind a reverse proxy, give its host name, allowed_hosts=[demo.example.org], and its path in root_path=. The size of
uploads and results is limited by limits.storage_mb= and limits.visitor_mb=. They are deleted after
delete_after_seconds= and when the server stops. Requests can name only files that were uploaded to this page. The page
loads nothing from the internet and sends nothing to it. GET /healthz answers once the models are loaded.
Needs: pip install -e ".[demo]"

What people change: run=, host=, port=, examples=, limits.seconds=, limits.upload_mb=, sampling.temperature=, device=.
"""

from __future__ import annotations

from pipeline.config.cli import hydra_command
from pipeline.webui.settings import DemoSettings


@hydra_command(DemoSettings)
def main(settings: DemoSettings) -> None:
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
    # set before gradio is imported
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="codec-audio-lm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "files")
        from pipeline.webui.app import serve_demo

        serve_demo(settings, Path(folder))


if __name__ == "__main__":
    main()
