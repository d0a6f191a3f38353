"""The optimizer's groups and the learning rate: pure functions of the settings and the step, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import InputError

SCHEDULES = ("constant", "linear", "cosine", "sequence")
_KNOWN = {"name", "warmup", "floor", "steps", "scale", "parts"}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices of linear maps decay; biases, norms, embeddings and other vectors do not."""
    spared = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in named if p.ndim >= 2 and id(p) not in spared and not name.endswith("bias")]
    chosen = {id(p) for p in decay}
    rest = [p for _, p in named if id(p) not in chosen]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


class CautiousAdamW(torch.optim.AdamW):
    """AdamW that clips by itself, and does nothing at all where a gradient is not finite.

    So do the optimizers that DeepSpeed puts around one, but there is none around it in fp32 at ZeRO-0. `overflow` and
    `_global_grad_norm` are what theirs are called, and where its engine looks.
    """

    overflow, _global_grad_norm = False, 0.0

    def __init__(self, groups: list[dict[str, Any]], clip: float, **settings: Any) -> None:
        """clip: the largest norm of all gradients; 0 leaves them alone."""
        super().__init__(groups, **settings)
        self._clip = clip

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights, unless a gradient is not finite."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(weights, self._clip or math.inf))
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()


def adamw(
    model: nn.Module, settings: Mapping[str, Any], device: torch.device, clip: float | None = None
) -> torch.optim.AdamW:
    """AdamW over the groups of `model`, fused on a GPU; `settings` are those of `conf/optim`.

    clip: largest norm of the gradients, where DeepSpeed puts no optimizer of its own around this one to see to it.
    """
    groups = parameter_groups(model, settings["weight_decay"])
    told: dict[str, Any] = {
        "lr": settings["lr"],
        "betas": tuple(settings["betas"]),
        "eps": settings["eps"],
        "fused": device.type == "cuda",
    }
    return torch.optim.AdamW(groups, **told) if clip is None else CautiousAdamW(groups, clip, **told)


def rate(step: int, steps: int, schedule: Mapping[str, Any]) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`.

    schedule: {name: constant|linear|cosine, warmup: steps, floor: share of the peak at the end}, or
    {name: sequence, parts: [{steps: n, name: ..., scale: share of the peak}, ...]}, whose last part may leave its
    steps out; one that `check_schedule` accepts.
    """
    name = schedule["name"]
    if name == "sequence":
        return _sequence(step, steps, schedule["parts"])
    warmup, floor = schedule.get("warmup", 0), schedule.get("floor", 0.0)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if name == "constant":
        return 1.0
    if name == "linear":
        return floor + (1 - floor) * (1 - done)
    assert name == "cosine"
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def _sequence(step: int, steps: int, parts: Iterable[Mapping[str, Any]]) -> float:
    start = 0
    for part in (parts := list(parts)):
        length = part.get("steps", steps - start)
        if step < start + length or part is parts[-1]:
            return part.get("scale", 1.0) * rate(step - start, length, part)
        start += length
    raise AssertionError("a sequence has parts")


def check_schedule(schedule: Mapping[str, Any], where: str = "optim.schedule") -> None:
    """Raises InputError for what is no schedule, in whatever part of it; `where` names it."""
    if not isinstance(schedule, Mapping) or schedule.get("name") not in SCHEDULES:
        name = schedule.get("name") if isinstance(schedule, Mapping) else schedule
        raise InputError(f"{where}.name={name}: expected one of {', '.join(SCHEDULES)}")
    if unknown := set(schedule) - _KNOWN:
        raise InputError(f"{where} has no {', '.join(sorted(unknown))}: it knows {', '.join(sorted(_KNOWN))}")
    for name in _KNOWN - {"name", "parts"}:
        value = schedule.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InputError(f"{where}.{name}={value}: expected a number of 0 or more")
    if schedule["name"] != "sequence":
        return
    parts = schedule.get("parts")
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise InputError(f"{where}.parts={parts}: a sequence needs a list of at least one part")
    for i, part in enumerate(parts):
        check_schedule(part, f"{where}.parts[{i}]")
        if "steps" not in part and i + 1 < len(parts):
            raise InputError(f"{where}.parts[{i}] has no steps: only the last part may leave them out")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
