"""Seconds become frames in the same way everywhere, for codecs of any frame rate."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.frames import count_frames
from pipeline.data.manifest import Manifest
from tests.helpers.small_codecs import NUMBERS

CODECS = sorted({(numbers.sample_rate, numbers.hop_length) for numbers in NUMBERS.values()} | {(22_050, 600)})


@pytest.mark.parametrize(("rate", "hop"), CODECS)
@given(frames=st.integers(1, 10**6), seconds=st.floats(1e-3, 86_400))
def test_frames_cover_a_sound(rate: int, hop: int, frames: int, seconds: float) -> None:
    """Frames to seconds and back is the same number; a sound never loses a frame, and has no empty one."""
    assert count_frames(frames * hop / rate, rate, hop) == count_frames(frames / (rate / hop), rate, hop) == frames
    count, samples = count_frames(seconds, rate, hop), round(seconds * rate)
    assert (count - 1) * hop < max(1, samples) <= count * hop


@pytest.mark.parametrize(("rate", "hop"), CODECS)
def test_manifest_has_whole_samples_per_frame(rate: int, hop: int) -> None:
    codec = json.loads(json.dumps({"sample_rate": rate, "frame_rate": rate / hop}))
    assert Manifest(codec, {}, {}, {}).hop_length == hop
