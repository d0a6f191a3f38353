"""Every choice of conf/deepspeed, including offload, has the same losses on the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.ranks import start_ranks
from tests.helpers.zero_choices import BEFORE, CHOICES, CONVERTED

Losses = dict[str, list[float]]


QUICK = [("zero0", "fp32"), ("zero1", "bf16"), ("zero3", "fp32")]  # one of each kind of checkpoint


def run_ranks(ranks: int, folder: Path, *checkpoints: str) -> Losses:
    """Losses on a number of ranks; on one rank, resumed from these checkpoints."""
    start_ranks(folder, "tests.helpers.zero_choices", str(folder), *checkpoints, ranks=ranks).wait()
    assert not list(folder.rglob("*.so"))  # nothing was compiled
    losses: Losses = json.loads((folder / f"{ranks}.json").read_text())
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two(folder: Path) -> Losses:
    return run_ranks(2, folder)


@pytest.fixture(scope="module")
def quick(two: Losses, folder: Path) -> Losses:
    """One rank, resumed from checkpoints of two ranks, one of each kind."""
    return run_ranks(1, folder, *("-".join(pair) for pair in QUICK))


@pytest.fixture(scope="module")
def rest(two: Losses, folder: Path) -> Losses:
    """One rank, resumed from all other checkpoints of two ranks."""
    return run_ranks(1, folder, *("-".join(pair) for pair in CONVERTED if pair not in QUICK))


@pytest.mark.parametrize("choice", CHOICES)
def test_all_choices_have_the_same_losses(two: Losses, choice: str) -> None:
    assert two[f"{choice} fp32"] == pytest.approx(two["zero0 fp32"], abs=1e-5)
    bf16 = two[f"{choice} bf16"]
    assert bf16[0] > bf16[2] > bf16[4]
    if choice != "zero0":  # whose first step in bf16 has no gradients
        assert bf16 == pytest.approx(two["zero0 fp32"], abs=0.03)


def test_norm_of_the_shards_is_that_of_the_weights(two: Losses) -> None:
    norm, expected = two["norm of shards"]
    assert norm == pytest.approx(expected, rel=1e-5)


def check_losses(two: Losses, one: Losses, choice: str, precision: str) -> None:
    name = f"{choice} {precision}"
    assert one[name] == pytest.approx(two[name][BEFORE:], abs=1e-5 if precision == "fp32" else 3e-3)


@pytest.mark.parametrize(("choice", "precision"), QUICK)
def test_resume_on_another_number_of_ranks(two: Losses, quick: Losses, choice: str, precision: str) -> None:
    """Including moments, step counts and weight decay."""
    check_losses(two, quick, choice, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "precision"), [pair for pair in CONVERTED if pair not in QUICK])
def test_resume_of_the_others_on_another_number_of_ranks(
    two: Losses, rest: Losses, choice: str, precision: str
) -> None:
    check_losses(two, rest, choice, precision)
