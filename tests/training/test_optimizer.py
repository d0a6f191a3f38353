"""Learning-rate schedules, weight decay groups, and gradient clipping."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.training.optimizer import NonFiniteSafeAdamW, build_adamw, parameter_groups, set_lr
from pipeline.training.schedules import check_schedule, lr_multiplier
from tests.helpers.models import tiny


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 50), st.integers(51, 500), st.floats(0, 1))
def test_lr_warms_up_to_the_peak_and_never_rises_after(name: str, warmup: int, steps: int, floor: float) -> None:
    schedule = {"name": name, "warmup": warmup, "floor": floor}
    rates = [lr_multiplier(s, steps, schedule) for s in range(steps + 1)]
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert rates[warmup] == pytest.approx(1)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[warmup:]))
    assert rates[-1] == pytest.approx(1 if name == "constant" else floor)


def test_sequence_runs_its_parts_in_order() -> None:
    parts = [{"name": "constant", "warmup": 4, "steps": 10}, {"name": "linear", "floor": 0.0, "scale": 0.5}]
    check_schedule({"name": "sequence", "parts": parts})
    rates = [lr_multiplier(s, 20, {"name": "sequence", "parts": parts}) for s in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[9] == 1
    assert rates[10:] == pytest.approx([0.5 * (1 - i / 10) for i in range(10)])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "sinus", "warmup": 1000}, r"schedule\.name=sinus: expected one of constant, linear, cosine"),
        ({"name": "cosine", "warmup": -1}, r"schedule\.warmup=-1: expected a number of 0 or more"),
        ({"name": "cosine", "flor": 0.1}, r"schedule has no flor: expected .*floor"),
        ({"name": "sequence"}, r"schedule\.parts=None: expected a list"),
        ({"name": "sequence", "parts": []}, r"schedule\.parts=\[\]"),
        ({"name": "sequence", "parts": ["linear"]}, r"schedule\.parts\[0\]\.name=linear"),
        ({"name": "sequence", "parts": [{"name": "linear"}] * 2}, r"parts\[0\] has no steps: only the last"),
        ({"name": "sequence", "parts": [{"name": "linear", "steps": 5}, {"name": "cosin"}]}, r"parts\[1\]\.name=cosin"),
    ],
)
def test_invalid_schedule_is_refused_in_any_part(schedule: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_schedule(schedule)


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


def test_set_lr_sets_every_group() -> None:
    optimizer = build_adamw(
        tiny(), {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.05}, torch.device("cpu")
    )
    set_lr(optimizer, math.pi)
    assert [group["lr"] for group in optimizer.param_groups] == [math.pi] * 2


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
def test_adamw_clips_and_reports_the_norm(max_grad_norm: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = NonFiniteSafeAdamW([{"params": [weight]}], max_grad_norm, lr=0.1)
    weight.grad = torch.tensor([3.0, 0.0, 4.0, 0.0])
    optimizer.step()
    assert optimizer._global_grad_norm == 5.0 and not optimizer.overflow
    assert float(weight.grad.norm()) == pytest.approx(0.5 if max_grad_norm == 0.5 else 5.0)
