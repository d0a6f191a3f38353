"""Small runs for tests: an untrained model with a real codec, embedder and dataset, which generates in seconds."""

from __future__ import annotations

import importlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from pipeline.data.manifest import Manifest
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from tests.helpers.demo_server import LIMITS, Server, running_demo, write_bad_prompts
from tests.helpers.models import PATTERN_OPTIONS, pattern_of
from tests.helpers.preprocess_runs import make

FRAMES = 30  # of the training clips
LENGTH = FRAMES / 75  # seconds


@dataclass(frozen=True)
class Workspace:
    """Runs, a dataset and sounds.

    Attributes:
        root: The folder that contains all of them.
        dataset: The training dataset.
        tones: Sound files to use as prompts.
    """

    root: Path
    dataset: Path
    tones: list[Path]

    def run(self, pattern: str = "delay", **changes: Any) -> Path:
        """A run folder; created once for each set of arguments. changes: fields of `ModelConfig`."""
        values = {
            key: value if isinstance(value, int | str) else zlib.crc32(repr(value).encode())
            for key, value in changes.items()
        }
        name = "-".join([pattern, *(f"{key}{value}" for key, value in values.items())])
        folder = self.root / "runs" / name
        if not folder.exists():
            manifest, positions = Manifest.load(self.dataset), pattern_of(pattern, 2).num_steps(2 * FRAMES)
            torch.manual_seed(0)
            config = ModelConfig(
                codebooks=2, pattern=pattern, prompt_dim=manifest.prompt_dim, width=32, layers=2, heads=4,
                positions=positions, dropout=0.0, prompt_dropout=0.0, end_of_audio=False, frames=FRAMES,
                codec=manifest.codec, embedder=manifest.embedder, pattern_options=PATTERN_OPTIONS.get(pattern, {}),
            )  # fmt: skip
            model = CodecGPT(replace(config, **changes))
            torch.nn.init.normal_(model.head.weight, std=0.2)
            model.save_pretrained(folder / "export")
            settings = {"shards": str(self.dataset), "data": {"seconds": FRAMES / 75, "train": "train"}}
            OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
        return folder


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, nsynth_folder: Path) -> Workspace:
    """A dataset of the first 0.4 s of 24 notes, with pitch labels, and 5 tones of 0.5 s."""
    root = tmp_path_factory.mktemp("trained")
    dataset = root / "cache"
    assert make("nsynth", nsynth_folder, dataset, f"data.seconds={FRAMES / 75}") == 0
    (root / "tones").mkdir()
    time = np.arange(12_000) / 24_000
    for i in range(5):
        tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (i / 3) * time) * np.exp(-3 * time)
        soundfile.write(root / "tones" / f"tone{i}.wav", tone, 24_000)
    return Workspace(root, dataset, sorted((root / "tones").iterdir()))


def run_command(name: str, *overrides: str) -> Any:
    """Run a command in this process; returns what its `main` returns."""
    return importlib.import_module(f"pipeline.{name}").main.task(list(overrides))


def generate(*overrides: str) -> int:
    """Run `pipeline.generate` in this process; returns its exit code."""
    return run_command("generate", *overrides)


def sidecar(wav: Path) -> dict:
    """The content of a sound's sidecar."""
    return json.loads(wav.with_suffix(".json").read_text())


def count_samples(wav: Path) -> int:
    """The length of a mono sound file at 24 kHz."""
    sound = soundfile.info(wav)
    assert sound.samplerate == 24_000 and sound.channels == 1
    return sound.frames


@pytest.fixture(scope="session")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of pipeline.demo with two models with different patterns, and the tones as examples."""
    runs = [workspace.run(), workspace.run("parallel")]
    with running_demo(
        runs, tmp_path_factory.mktemp("demo"), f"examples={workspace.tones[0].parent}", *LIMITS
    ) as server:
        yield server


@pytest.fixture(scope="session")
def bad_prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Files that cannot be used as prompts, and the demo's message about each."""
    return write_bad_prompts(tmp_path_factory.mktemp("bad"))
