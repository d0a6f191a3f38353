"""A piece as it is made: for players that do not wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pipeline.config.cli import compose
from pipeline.generation import runner
from pipeline.generation.generator import Generation
from pipeline.generation.loaded_run import load_run
from pipeline.generation.request import ClipRequest, SlidingWindow, build_requests, parse_sampling
from pipeline.generation.runner import start_generation, stream_audio
from pipeline.generation.sampling import SamplingParams
from tests.helpers.trained_run import Workspace


def test_chunks_join_without_clicks_into_the_sound_made_whole(workspace: Workspace) -> None:
    instrument, clip = load_run(workspace.run(), "cpu"), ClipRequest(5, [(0, torch.randn(192))])
    parts = list(stream_audio(instrument, clip, 30_000, SamplingParams(0.8), SlidingWindow(16, 8), 0.1))
    assert len(parts) > 8 and sum(map(len, parts)) == 30_000
    take = start_generation(instrument, [clip], 30_000, SamplingParams(0.8), SlidingWindow(16, 8))
    list(take.chunks())
    whole = instrument.codec.decode(take.codes)[0, 0, :30_000].numpy()
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-4


def test_the_first_sound_comes_long_before_the_last(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an hour, one second is read: little more than its 75 frames is generated."""
    instrument, takes = load_run(workspace.run(), "cpu"), list[Generation]()

    def kept(*arguments: object) -> Generation:
        takes.append(start_generation(*arguments))  # type: ignore[arg-type]
        return takes[-1]

    monkeypatch.setattr(runner, "start_generation", kept)
    sounds = stream_audio(instrument, ClipRequest(0), 3600 * 24_000, SamplingParams(1), SlidingWindow(16, 8), 0.1)
    heard = 0
    while heard < 24_000:
        heard += len(next(sounds))
    sounds.close()
    assert [75 <= take.complete_frames < 150 for take in takes] == [True]


def test_progress_counts_clips(workspace: Workspace, tmp_path: Path) -> None:
    """`clip 1 of 1` for one clip; the first and last clip of each batch for several."""
    instrument = load_run(workspace.run(), "cpu")
    for words, expected in (
        ((f"out={tmp_path / 'one.wav'}",), ["clip 1 of 1"]),
        (
            (f"out={tmp_path / 'five'}", f"prompt={workspace.tones[0].parent}"),
            ["clips 1-2 of 5", "clips 3-4 of 5", "clip 5 of 5"],
        ),
    ):
        settings = OmegaConf.to_container(compose("generate", [f"run={workspace.run()}", "seconds=0.1", *words]))
        assert isinstance(settings, dict)
        lines: list[str] = []
        list(
            runner.generate_files(
                instrument,
                build_requests(settings, instrument),
                parse_sampling(settings["sampling"]),
                None,
                2,
                lines.append,
            )
        )
        assert list(dict.fromkeys(line.split(":")[0] for line in lines)) == expected
