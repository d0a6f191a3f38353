"""`full_precision` restores the caller's settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.audio.precision import full_precision


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_is_restored(precision: str) -> None:
    """Before torch 2.9 "medium" was restored as "high"."""
    torch.set_float32_matmul_precision(precision)
    x, exact = torch.randn(64, 64), torch.float64
    with full_precision(torch.device("cpu")):
        assert ((x @ x).to(exact) - x.to(exact) @ x.to(exact)).norm() < 1e-5 * (x.to(exact) @ x.to(exact)).norm()
    assert torch.get_float32_matmul_precision() == precision
