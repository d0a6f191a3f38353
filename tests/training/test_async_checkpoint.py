"""Background checkpoints: the files have the state at the moment of saving, and errors are raised."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pipeline.training.async_checkpoint import AsyncCheckpointEngine


def test_later_changes_are_not_in_the_file(tmp_path: Path) -> None:
    writer, weight = AsyncCheckpointEngine(), torch.arange(6.0)
    state = {"module": OrderedDict(weight=weight, tied=weight), "moments": [weight[:2]], "step": 3, "shape": (2, 3)}
    writer.save(state, str(tmp_path / "state.pt"))
    weight.zero_()
    writer.wait()
    assert not writer.busy
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(loaded["module"]["weight"], torch.arange(6.0)) and torch.equal(
        loaded["moments"][0], torch.arange(2.0)
    )
    assert loaded["module"]["tied"].data_ptr() == loaded["module"]["weight"].data_ptr(), "shared stays shared"
    assert loaded["step"] == 3 and loaded["shape"] == (2, 3) and isinstance(loaded["module"], OrderedDict)


def test_slice_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    writer = AsyncCheckpointEngine()
    writer.save({"part": torch.zeros(1_000_000)[:10]}, str(tmp_path / "state.pt"))
    writer.wait()
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_write_error_is_raised_by_wait(tmp_path: Path) -> None:
    writer = AsyncCheckpointEngine()
    writer.save({"weight": torch.zeros(3)}, str(tmp_path / "absent" / "state.pt"))
    with pytest.raises((OSError, RuntimeError), match="absent"):
        writer.wait()
    writer.wait()
