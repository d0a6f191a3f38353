"""Datasets built by preprocessing: in this process, or by the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipeline.config.cli import load_settings
from pipeline.preprocessing.runner import preprocess
from pipeline.preprocessing.settings import PreprocessSettings
from tests.helpers.warm_python import ROOT, WarmPython, run_python

SMALL = ("codec=encodec_embedded", "codec.codebooks=2", "embedder=encodecmae_tiny", "samples_per_shard=6")
HERE = ("encoder_workers=1", "decode_workers=0", "devices=cpu")  # in the calling process


def args(data: str, root: Path, out: Path | str, *overrides: str) -> list[str]:
    """The command line that builds a small dataset of a corpus; its scan cache is next to the corpus."""
    scan_cache = f"data.scan_cache_dir='{root.parent / 'scan_cache'}'"
    location = (f"data={data}", f"data.root='{root}'", scan_cache, f"out='{out}'", "examine_clips=0")
    return [*location, *SMALL, *overrides]


def make(data: str, root: Path, out: Path | str, *overrides: str) -> int:
    """Preprocess in this process, and return the exit code."""
    return preprocess(load_settings(PreprocessSettings, args(data, root, out, *HERE, *overrides)))


def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m module arguments`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], env=env, text=True, **pipes)


def command(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` to its end; with options, not as a fork."""
    if not options:
        return run_python(["-m", module, *arguments])
    process = start(module, *arguments, **options)
    out, error = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def start_forked(output: Path, *arguments: str) -> WarmPython:
    """Start `python -m pipeline.preprocess arguments`, which prints to a file."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return WarmPython(["-m", "pipeline.preprocess", *arguments], output, env=env)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tones(root: Path, count: int, seconds: float = 0.4) -> Path:
    """A folder of `count` wavs of 24 kHz with different pitches."""
    root.mkdir(parents=True, exist_ok=True)
    for i, wav in enumerate(_tones(count, seconds)):
        soundfile.write(root / f"tone{i:03d}.wav", wav, 24_000)
    return root


def _tones(count: int, seconds: float) -> Iterator[np.ndarray]:
    time = np.arange(round(24_000 * seconds)) / 24_000
    for i in range(count):
        yield (0.4 * np.sin(2 * np.pi * (110 + i // 48) * 2 ** (i % 48 / 12) * time)).astype(np.float32)
