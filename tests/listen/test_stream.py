"""A piece as it is made: for players that do not wait."""

from __future__ import annotations

import time

import numpy as np
import torch

from pipeline.listen.instrument import open_run
from pipeline.listen.perform import stream, take_of
from pipeline.listen.pieces import Clip, Window
from pipeline.lm.choice import Sampling
from tests.listen.conftest import Stage


def test_chunks_join_without_clicks_into_the_sound_made_whole(stage: Stage) -> None:
    instrument, clip = open_run(stage.run(), "cpu"), Clip(5, [(0, torch.randn(192))])
    parts = list(stream(instrument, clip, 30_000, Sampling(0.8), Window(16, 8), 0.1))
    assert len(parts) > 8 and sum(map(len, parts)) == 30_000
    take = take_of(instrument, [clip], 30_000, Sampling(0.8), Window(16, 8))
    list(take.chunks())
    whole = instrument.codec.decode(take.codes)[0, 0, :30_000].numpy()
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-4


def test_the_first_sound_comes_long_before_the_last(stage: Stage) -> None:
    """An hour is asked for, a second is taken: what is not heard is never made."""
    instrument, started = open_run(stage.run(), "cpu"), time.perf_counter()
    sounds = stream(instrument, Clip(0), 3600 * 24_000, Sampling(1), Window(16, 8), 0.1)
    heard = 0
    while heard < 24_000:
        heard += len(next(sounds))
    sounds.close()
    assert time.perf_counter() - started < 20
