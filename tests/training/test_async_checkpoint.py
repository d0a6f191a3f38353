"""Checkpoints written aside: what is on disk is the state at the moment of saving, and failures are not lost."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pipeline.training.async_checkpoint import AsyncCheckpointEngine


def test_what_training_changes_afterwards_is_not_in_the_file(tmp_path: Path) -> None:
    writer, weight = AsyncCheckpointEngine(), torch.arange(6.0)
    state = {"module": OrderedDict(weight=weight, tied=weight), "moments": [weight[:2]], "step": 3, "shape": (2, 3)}
    writer.save(state, str(tmp_path / "state.pt"))
    weight.zero_()
    writer.wait()
    assert not writer.busy
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(found["module"]["weight"], torch.arange(6.0)) and torch.equal(
        found["moments"][0], torch.arange(2.0)
    )
    assert found["module"]["tied"].data_ptr() == found["module"]["weight"].data_ptr(), "shared stays shared"
    assert found["step"] == 3 and found["shape"] == (2, 3) and isinstance(found["module"], OrderedDict)


def test_a_slice_takes_no_more_room_than_its_own_numbers(tmp_path: Path) -> None:
    writer = AsyncCheckpointEngine()
    writer.save({"part": torch.zeros(1_000_000)[:10]}, str(tmp_path / "state.pt"))
    writer.wait()
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_what_cannot_be_written_is_raised_when_waited_for(tmp_path: Path) -> None:
    writer = AsyncCheckpointEngine()
    writer.save({"weight": torch.zeros(3)}, str(tmp_path / "absent" / "state.pt"))
    with pytest.raises((OSError, RuntimeError), match="absent"):
        writer.wait()
    writer.wait()
