"""The page of pipeline.demo, served by the real command; and prompt files that it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.helpers.warm_python import ROOT, WarmPython

LIMITS = ("limits.upload_mb=1", "limits.upload_seconds=60", "limits.seconds=5")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: The command.
        address: The address that it printed.
        folder: Its TMPDIR.
        runs: Two models with different patterns.
    """

    process: WarmPython
    address: str
    folder: Path
    runs: list[Path]

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Send a GET request, and return status and body of the response."""
        return self.send(urllib.request.Request(self.address + path, headers=headers))

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        """Send a JSON request, and return status and body of the response."""
        headers = {"content-type": "application/json"}
        return self.send(urllib.request.Request(self.address + path, json.dumps(body).encode(), headers))

    def send(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """Send a request, and return status and body of the response."""
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def client(self, downloads: Path) -> Any:
        """Return a client with its own session."""
        from gradio_client import Client

        return Client(self.address, verbose=False, download_files=downloads)


@contextmanager
def running_demo(
    runs: list[Path], folder: Path, *overrides: str, stop_signal: signal.Signals = signal.SIGINT
) -> Iterator[Server]:
    """Run the real command. It is stopped by a signal, and must leave no files."""
    settings = ("run=[" + ",".join(map(str, runs)) + "]", "port=0", "device=cpu", *overrides)
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder.with_suffix(".log")
    process = WarmPython(
        ["-m", "pipeline.demo", *settings], log, env=env, cwd=Path.cwd(), preload=("pipeline.webui.page",)
    )
    try:
        while not (match := re.search(r"open (http://\S+)\s", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Server(process, match.group(1), folder, runs)
        process.send_signal(stop_signal)
        assert process.wait(30) == 0, log.read_text()
        assert not list(folder.iterdir()), "uploads or results were not deleted"
    finally:
        process.kill()


def write_bad_prompts(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write files that cannot be prompts, and return each with its message on the page."""
    (folder / "text.wav").write_text("this is not audio\n" * 100)
    (folder / "empty.wav").write_bytes(b"")
    with soundfile.SoundFile(folder / "hour.flac", "w", 8_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(8_000 * 60, np.int16))
    soundfile.write(folder / "large.wav", np.random.default_rng(0).uniform(-1, 1, 24_000 * 30), 24_000)
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 24_000)
    return {
        "text": (folder / "text.wav", "text.wav cannot be played: not audio"),
        "empty": (folder / "empty.wav", "empty.wav is empty: it has 0 bytes"),
        "hour": (folder / "hour.flac", "hour.flac lasts 3600 s: this page accepts at most 60 s"),
        "large": (folder / "large.wav", "maximum allowed size"),
        "silent": (folder / "silent.wav", "silent.wav is silent"),
    }
