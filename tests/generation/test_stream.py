"""Sound that is decoded while it is generated, and progress lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from pipeline.config.cli import compose
from pipeline.generation.loaded_run import load_run
from pipeline.generation.request import ClipRequest, SlidingWindow, build_requests
from pipeline.generation.runner import decode_chunks, generate_files, start_generation
from pipeline.generation.settings import sampling_settings
from tests.helpers.trained_run import Workspace

WINDOW = SlidingWindow(16, 8)


def test_streamed_chunks_join_to_the_decoded_sound(workspace: Workspace) -> None:
    """Chunks decoded during the generation join, without clicks, to the sound decoded at once."""
    run, clip, sampling = (
        load_run(workspace.run(), "cpu"),
        ClipRequest(5, [(0, torch.randn(192))]),
        sampling_settings(temperature=0.8),
    )
    generation = start_generation(run, [clip], 30_000, sampling, WINDOW)
    chunks = list(decode_chunks(run, generation, 30_000, 0.1))
    assert len(chunks) > 8 and sum(map(len, chunks)) == 30_000
    again = start_generation(run, [clip], 30_000, sampling, WINDOW)
    list(again.chunks())
    expected = run.codec.decode(again.codes)[0, 0, :30_000].numpy()
    assert np.abs(np.concatenate(chunks) - expected).max() < 1e-4


def test_first_chunk_comes_long_before_the_last(workspace: Workspace) -> None:
    """If one second of an hour is read, little more than its 75 frames is generated."""
    run = load_run(workspace.run(), "cpu")
    generation = start_generation(run, [ClipRequest(0)], 3600 * 24_000, sampling_settings(temperature=1), WINDOW)
    chunks = decode_chunks(run, generation, 3600 * 24_000, 0.1)
    samples = 0
    while samples < 24_000:
        samples += len(next(chunks))
    assert 75 <= generation.complete_frames < 150


def test_progress_lines_count_clips(workspace: Workspace, tmp_path: Path) -> None:
    """`clip 1 of 1` for one clip; the first and the last clip of each batch for several."""
    run = load_run(workspace.run(), "cpu")
    five = (f"out={tmp_path / 'five'}", f"prompt={workspace.tones[0].parent}")
    for overrides, expected in (
        ((f"out={tmp_path / 'one.wav'}",), ["clip 1 of 1"]),
        (five, ["clips 1-2 of 5", "clips 3-4 of 5", "clip 5 of 5"]),
    ):
        settings = OmegaConf.to_container(compose("generate", [f"run={workspace.run()}", "seconds=0.1", *overrides]))
        assert isinstance(settings, dict)
        lines: list[str] = []
        requests, sampling = build_requests(settings, run), sampling_settings(**settings["sampling"])
        list(generate_files(run, requests, sampling, None, 2, lines.append))
        assert list(dict.fromkeys(line.split(":")[0] for line in lines)) == expected
