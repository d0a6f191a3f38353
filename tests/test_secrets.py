"""No secret of an address, a setting or the environment is in a file or the output of a run."""

from __future__ import annotations

import http.server
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.config import sweeps
from pipeline.config.cli import compose
from pipeline.data.storage import RemoteStorage, open_storage
from pipeline.train import main
from tests.helpers.preprocess_runs import make, tones
from tests.helpers.training_caches import write_cache

TINY = (
    "+exp=delay_gpt2", "codec=encodec_embedded", "codec.codebooks=4", "model=tiny", "model.width=32", "model.layers=1",
    "trainer.steps=2", "trainer.micro_batch=4", "trainer.log_every=1", "trainer.val_every=1", "trainer.keep=1",
    "audio_samples.clips=1", "audio_samples.seconds=0.1", "audio_samples.temperatures=[1]", "tracking.mode=offline",
)  # fmt: skip
VARIABLES = (
    *("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
    *("AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "PGPASSWORD", "GITHUB_TOKEN", "OPENAI_API_KEY"),
)


class AnyAddress(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder by their names, whatever is before these in the address."""

    def translate_path(self, path: str) -> str:
        return str(Path(self.directory) / path.rpartition("/")[2])

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`127.0.0.1:PORT` of a web server of a folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(AnyAddress, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def leaks(folder: Path, secrets: set[str]) -> dict[str, set[str]]:
    """The files below a folder whose bytes or name hold a secret, with these."""
    files = {}
    for file in folder.rglob("*"):
        content = str(file).encode() + (file.read_bytes() if file.is_file() else b"")
        if hit := {secret for secret in secrets if secret.encode() in content}:
            files[str(file.relative_to(folder))] = hit
    return files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder: all that a run may write to besides its run folder."""
    folder = tmp_path / "home"
    (folder / "tmp").mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    return folder


def test_run_leaves_no_secret(
    here: None, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Logins and signatures of addresses, settings with secret names, keys of the environment: in no file."""
    pytest.importorskip("aiohttp")
    cache = write_cache(tmp_path / "cache")
    secrets = {f"Hidden{i}Value" for i in range(5)} | {f"Hidden-{name}" for name in VARIABLES}
    for name in VARIABLES:
        monkeypatch.setenv(name, f"Hidden-{name}")
    with served(cache) as host:
        addresses = f"{{a: 'http://user:Hidden0Value%40@{host}', b: 'http://{host}/b?sig=Hidden1Value&x=1/c'}}"
        overrides = (
            f"shards={addresses}", "+deepspeed.comet={enabled: false, api_key: Hidden2Value}",
            "tracking.notes='https://me:Hidden3Value@wiki/page'", "+deepspeed.store='AccountKey=Hidden4Value=='",
            f"run={tmp_path}/run",
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *TINY, *overrides])
        main()
    printed = "".join(capfd.readouterr())
    assert {secret for secret in secrets if secret in printed} == set(), printed
    names = {file.name for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert names >= {"config.yaml", "log.txt", "metrics.jsonl", "complete.json", "README.md"}
    assert [*(tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")] and any(".wav" in name for name in names)
    assert leaks(tmp_path, secrets) == {}


def test_dataset_contains_no_secret(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, index and manifest of a cache whose address has a login."""
    monkeypatch.setenv("HF_TOKEN", "Hidden-HF_TOKEN")
    address = "memory://user:Hidden0Value@host/cache"
    assert make("folder", tones(tmp_path / "tones", 6), address) == 0
    store = open_storage(address)
    assert isinstance(store, RemoteStorage)
    for name in store.sizes():
        (tmp_path / "home" / name).write_bytes(store.read(name))
    assert (home / "manifest.json").is_file()
    assert leaks(home, {"Hidden0Value", "Hidden-HF_TOKEN"}) == {}


def test_sweep_folder_names_contain_no_secret() -> None:
    overrides = ["+exp=delay_gpt2", "shards='http://user:Hidden0Value@h/a'"]
    cfg = compose("train", overrides)
    sweeps.separate_outputs("train", cfg, ["shards"], overrides)
    assert cfg.run.startswith("runs/delay_gpt2/shards-") and "Hidden0Value" not in cfg.run
