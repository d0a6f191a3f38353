"""What the settings of training may be: looked at before anything is read or built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError
from pipeline.training import schedules

Limit = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that

_ONE: Limit = ("a whole number of 1 or more", lambda value: _whole(value) and value >= 1)
_COUNT: Limit = ("a whole number of 0 or more", lambda value: _whole(value) and value >= 0)
_ABOVE: Limit = ("a number above 0", lambda value: _number(value) and value > 0)
_POSITIVE: Limit = ("a number of 0 or more", lambda value: _number(value) and value >= 0)
_FRACTION_EXCLUSIVE: Limit = ("a number of 0 or more and below 1", lambda value: _number(value) and 0 <= value < 1)
_FRACTION: Limit = ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
_BETAS: Limit = (
    "two numbers of 0 or more and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_FRACTION_EXCLUSIVE[1], value)),
)
_EACH_POSITIVE: Limit = (
    "a list of numbers of 0 or more",
    lambda value: isinstance(value, list) and bool(value) and all(map(_POSITIVE[1], value)),
)

RANGES: dict[str, Limit] = {
    "seed": _COUNT,
    "data.seconds": _ABOVE,
    "data.shuffle_shards": _ONE,
    "data.interleave": _ONE,
    "data.max_padding": _FRACTION,
    "data.max_lost_fraction": _FRACTION,
    "data.threads": _ONE,
    "data.cache_gib": _ABOVE,
    "model.width": _ONE,
    "model.layers": _ONE,
    "model.heads": _ONE,
    "model.dropout": _FRACTION_EXCLUSIVE,
    "model.prompt_dropout": _FRACTION,
    "optim.lr": _POSITIVE,
    "optim.betas": _BETAS,
    "optim.eps": _ABOVE,
    "optim.weight_decay": _POSITIVE,
    "trainer.steps": _ONE,
    "trainer.compute_budget_pflop": _ABOVE,
    "trainer.micro_batch": _ONE,
    "trainer.gradient_accumulation_steps": _ONE,
    "trainer.max_grad_norm": _POSITIVE,
    "trainer.log_every": _ONE,
    "trainer.val_every": _COUNT,
    "trainer.save_every": _COUNT,
    "trainer.keep": _COUNT,
    "trainer.keep_every": _COUNT,
    "trainer.watchdog_seconds": _ABOVE,
    "trainer.max_skipped_steps": _ONE,
    "trainer.ema": _FRACTION_EXCLUSIVE,
    "trainer.label_smoothing": _FRACTION_EXCLUSIVE,
    "audio_samples.clips": _COUNT,
    "audio_samples.seconds": _ABOVE,
    "audio_samples.temperatures": _EACH_POSITIVE,
    "audio_samples.top_k": _COUNT,
}
_MAY_BE_NULL = {"data.seconds", "trainer.compute_budget_pflop"}


def validate(cfg: DictConfig) -> None:
    """Raises InputError for a setting of training that no run could have, naming it and what is expected."""
    for name, (expected, holds) in RANGES.items():
        value = OmegaConf.select(cfg, name)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not (value is None and name in _MAY_BE_NULL) and not holds(value):
            raise InputError(f"{name}={value}: expected {expected}")
    schedule: Any = OmegaConf.to_container(cfg.optim.schedule, resolve=True)
    schedules.check_schedule(schedule)
    if cfg.mixture_weights is not None and isinstance(cfg.shards, str):
        raise InputError("mixture_weights= shares steps out among several caches, and shards= names one: leave it out")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)
