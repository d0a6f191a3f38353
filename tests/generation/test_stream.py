"""Sound that is written while it is generated, and progress lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from torch import Tensor

from pipeline.config.cli import load_settings
from pipeline.generation.loaded_run import load_run
from pipeline.generation.request import build_requests
from pipeline.generation.runner import generate_files
from pipeline.generation.settings import GenerateSettings
from tests.helpers.trained_run import Workspace


def test_first_chunk_comes_long_before_the_last(workspace: Workspace, tmp_path: Path) -> None:
    """When one second of an hour is in the file, little more than its 75 frames is generated."""
    run, out, frames = load_run(workspace.run(), "cpu"), tmp_path / "long.wav", 0
    overrides = ["mode=continue", "seconds=3600", "window=0.2", "stream=true", "chunk=0.1", f"out={out}"]

    def on_codes(codes: Tensor) -> None:
        nonlocal frames
        frames += codes.shape[2]
        if soundfile.info(out).frames >= 24_000:
            raise KeyboardInterrupt

    files = generate_files(run, build_requests(load_settings(GenerateSettings, overrides), run), on_codes=on_codes)
    incomplete = next(files)
    assert not incomplete.is_complete and 1 <= incomplete.seconds < 2 and 75 <= frames < 150
    with pytest.raises(KeyboardInterrupt):
        next(files)


def test_progress_lines_count_clips(workspace: Workspace, tmp_path: Path) -> None:
    """`clip 1 of 1` for one clip; the first and the last clip of each batch for several."""
    run = load_run(workspace.run(), "cpu")
    five = (f"out={tmp_path / 'five'}", f"prompt={workspace.tones[0].parent}")
    for overrides, expected in (
        ((f"out={tmp_path / 'one.wav'}",), ["clip 1 of 1"]),
        (five, ["clips 1-2 of 5", "clips 3-4 of 5", "clip 5 of 5"]),
    ):
        settings = load_settings(GenerateSettings, ["seconds=0.1", "batch=2", *overrides])
        lines: list[str] = []
        list(generate_files(run, build_requests(settings, run), on_status=lines.append))
        assert list(dict.fromkeys(line.split(":")[0] for line in lines)) == expected
