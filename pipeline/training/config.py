"""Validation of the training settings, before anything is read or built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.common.errors import InputError
from pipeline.training import schedules


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


Range = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is valid

_COUNT_FROM_1: Range = ("a whole number of 1 or more", lambda value: _is_int(value) and value >= 1)
_COUNT: Range = ("a whole number of 0 or more", lambda value: _is_int(value) and value >= 0)
_POSITIVE: Range = ("a number above 0", lambda value: _is_number(value) and value > 0)
_NON_NEGATIVE: Range = ("a number of 0 or more", lambda value: _is_number(value) and value >= 0)
_FRACTION: Range = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_FRACTION_EXCLUSIVE: Range = ("a number of 0 or more and below 1", lambda value: _is_number(value) and 0 <= value < 1)
_BETAS: Range = (
    "two numbers of 0 or more and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_FRACTION_EXCLUSIVE[1], value)),
)
_NON_NEGATIVE_LIST: Range = (
    "a list of numbers of 0 or more",
    lambda value: isinstance(value, list) and bool(value) and all(map(_NON_NEGATIVE[1], value)),
)

RANGES: dict[str, Range] = {
    "seed": _COUNT,
    "data.seconds": _POSITIVE,
    "data.shuffle_shards": _COUNT_FROM_1,
    "data.interleave": _COUNT_FROM_1,
    "data.max_padding": _FRACTION,
    "data.max_lost_fraction": _FRACTION,
    "data.threads": _COUNT_FROM_1,
    "data.cache_gib": _POSITIVE,
    "model.width": _COUNT_FROM_1,
    "model.layers": _COUNT_FROM_1,
    "model.heads": _COUNT_FROM_1,
    "model.dropout": _FRACTION_EXCLUSIVE,
    "model.prompt_dropout": _FRACTION,
    "optim.lr": _NON_NEGATIVE,
    "optim.betas": _BETAS,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _NON_NEGATIVE,
    "trainer.steps": _COUNT_FROM_1,
    "trainer.compute_budget_pflop": _POSITIVE,
    "trainer.micro_batch": _COUNT_FROM_1,
    "trainer.gradient_accumulation_steps": _COUNT_FROM_1,
    "trainer.max_grad_norm": _NON_NEGATIVE,
    "trainer.log_every": _COUNT_FROM_1,
    "trainer.val_every": _COUNT,
    "trainer.save_every": _COUNT,
    "trainer.keep": _COUNT,
    "trainer.keep_every": _COUNT,
    "trainer.watchdog_seconds": _POSITIVE,
    "trainer.max_skipped_steps": _COUNT_FROM_1,
    "trainer.ema": _FRACTION_EXCLUSIVE,
    "trainer.label_smoothing": _FRACTION_EXCLUSIVE,
    "audio_samples.clips": _COUNT,
    "audio_samples.seconds": _POSITIVE,
    "audio_samples.temperatures": _NON_NEGATIVE_LIST,
    "audio_samples.top_k": _COUNT,
}
_NULLABLE = {"data.seconds", "trainer.compute_budget_pflop"}


def validate(cfg: DictConfig) -> None:
    """Check the training settings.

    Raises:
        InputError: a setting is not valid; the message names it and what is expected.
    """
    for name, (expected, is_valid) in RANGES.items():
        value = OmegaConf.select(cfg, name)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not (value is None and name in _NULLABLE) and not is_valid(value):
            raise InputError(f"{name}={value}: expected {expected}")
    schedule: Any = OmegaConf.to_container(cfg.optim.schedule, resolve=True)
    schedules.check_schedule(schedule)
    if cfg.mixture_weights is not None and isinstance(cfg.shards, str):
        raise InputError("mixture_weights= mixes several datasets, but shards= names one: remove mixture_weights=")
