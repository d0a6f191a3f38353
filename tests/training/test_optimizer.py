"""Learning-rate schedules, weight decay groups, and gradient clipping."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.common.settings import parse_settings
from pipeline.training.optimizers import parameter_groups
from pipeline.training.schedules import SCHEDULES, Schedule
from pipeline.training.zero_patches import add_clipping
from tests.helpers.models import tiny


def schedule(name: str, **values: Any) -> Schedule:
    """A schedule by its name."""
    settings = {"name": name, "warmup": 0, "floor": 0.0, "parts": None, **values}
    return parse_settings(SCHEDULES.get(name), settings, "optim.schedule.")


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 50), st.integers(51, 500), st.floats(0, 1))
def test_lr_warms_up_to_the_peak_and_never_rises_after(name: str, warmup: int, steps: int, floor: float) -> None:
    rate = schedule(name, warmup=warmup, floor=floor).multiplier
    rates = [rate(s, steps) for s in range(steps + 1)]
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert rates[warmup] == pytest.approx(1)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[warmup:]))
    assert rates[-1] == pytest.approx(1 if name == "constant" else floor)


def test_sequence_runs_its_parts_in_order() -> None:
    parts = [{"name": "constant", "warmup": 4, "steps": 10}, {"name": "linear", "floor": 0.0, "scale": 0.5}]
    rates = [schedule("sequence", parts=parts).multiplier(s, 20) for s in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[9] == 1
    assert rates[10:] == pytest.approx([0.5 * (1 - i / 10) for i in range(10)])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r"schedule\.parts=null: expected a list"),
        ([], r"schedule\.parts=\[\]"),
        ([{"name": "linear"}] * 2, r"parts\[0\] has no steps: only the last"),
        ([{"name": "linear", "steps": 5}, {"name": "cosin"}], r"parts\[1\]\.name=cosin: there is no such schedule"),
        ([{"name": "cosine", "warmup": -1}], r"parts\[0\]\.warmup=-1: expected a whole number of 0 or more"),
        ([{"name": "cosine", "flor": 0.1}], r"no setting 'optim\.schedule\.parts\[0\]\.flor'; did you mean .*floor"),
        ([{"name": "cosine", "scale": -1}], r"parts\[0\]\.scale=-1: expected a number of 0 or more"),
    ],
)
def test_invalid_part_of_a_sequence_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule("sequence", parts=parts)


def test_only_matrices_have_weight_decay() -> None:
    model = tiny()
    decay, rest = parameter_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    assert {
        "head.weight",
        "prompt.weight",
        "backbone.h.0.attn.c_attn.weight",
        "backbone.h.0.mlp.c_fc.weight",
    } <= decayed
    assert not any(part in name for name in decayed for part in ("bias", "ln_", "codes", "wpe", "null"))
    assert len(decay["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
def test_clipped_optimizer_reports_the_norm(max_grad_norm: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer: Any = torch.optim.SGD([{"params": [weight]}], lr=0.1)
    add_clipping(optimizer, max_grad_norm)
    weight.grad = torch.tensor([3.0, 0.0, 4.0, 0.0])
    optimizer.step()
    assert optimizer._global_grad_norm == 5.0 and not optimizer.overflow
    norm = 0.5 if max_grad_norm == 0.5 else 5.0
    assert float(weight.grad.norm()) == pytest.approx(norm) and float(weight.norm()) == pytest.approx(0.1 * norm)
    before, weight.grad[0] = weight.detach().clone(), torch.nan
    optimizer.step()
    assert optimizer.overflow and torch.equal(weight, before)
