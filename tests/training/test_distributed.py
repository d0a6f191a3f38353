"""The environment variables that launchers set for a rank."""

from __future__ import annotations

import os

import pytest

from pipeline.common.errors import InputError
from pipeline.training import distributed

pytestmark = pytest.mark.usefixtures("here")


def test_local_rank_is_0_if_the_launcher_sets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow sets RANK and WORLD_SIZE only, and starts one process per pod."""
    distributed.init_distributed(60)  # the process group that all tests of this process share
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK")
    world = distributed.init_distributed(60)
    assert (world.rank, world.world_size, os.environ["LOCAL_RANK"]) == (0, 1, "0")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "RANK is set but WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not: unset RANK"),
        ({"RANK": "a", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "expected whole numbers"),
    ],
)
def test_incomplete_or_invalid_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        distributed.init_distributed(60)
