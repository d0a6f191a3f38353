"""The page of pipeline.demo, served by the real command; and files that it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
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

from tests.helpers.preprocess_runs import ROOT

LIMITS = ("limits.upload_mb=1", "limits.upload_seconds=60", "limits.seconds=5")


@dataclass(frozen=True)
class Server:
    """address: as it was printed; folder: its TMPDIR; runs: two models of two patterns."""

    process: subprocess.Popen[bytes]
    address: str
    folder: Path
    runs: list[Path]

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        return self.ask(urllib.request.Request(self.address + path, headers=headers))

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        """The same, of JSON sent."""
        headers = {"content-type": "application/json"}
        return self.ask(urllib.request.Request(self.address + path, json.dumps(body).encode(), headers))

    def ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """Status and body."""
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def client(self, downloads: Path) -> Any:
        """Somebody else on the page."""
        from gradio_client import Client

        return Client(self.address, verbose=False, download_files=downloads)


@contextmanager
def serving(runs: list[Path], folder: Path, *words: str, end: signal.Signals = signal.SIGINT) -> Iterator[Server]:
    """The real command, from its first line to the signal that ends it."""
    settings = ("run=[" + ",".join(map(str, runs)) + "]", "port=0", "device=cpu", *words)
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "pipeline.demo", *settings], env=env, stdout=out, stderr=out)
    try:
        while not (found := re.search(r"open (http://\S+)\s", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Server(process, found.group(1), folder, runs)
        process.send_signal(end)
        assert process.wait(30) == 0, log.read_text()
        assert not list(folder.iterdir()), "uploads and results are left behind"
    finally:
        process.kill()


def spoil(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no prompts, and what is said of each."""
    (folder / "text.wav").write_text("this is no sound\n" * 100)
    (folder / "empty.wav").write_bytes(b"")
    with soundfile.SoundFile(folder / "hour.flac", "w", 8_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(8_000 * 60, np.int16))
    soundfile.write(folder / "large.wav", np.random.default_rng(0).uniform(-1, 1, 24_000 * 30), 24_000)
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 24_000)
    return {
        "text": (folder / "text.wav", "text.wav cannot be played: not audio"),
        "empty": (folder / "empty.wav", "empty.wav is empty: there are 0 bytes in it"),
        "hour": (folder / "hour.flac", "hour.flac lasts 3600 s: this page takes 60 s at most"),
        "large": (folder / "large.wav", "maximum allowed size"),
        "silent": (folder / "silent.wav", "silent.wav is silent"),
    }
