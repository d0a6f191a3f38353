"""Checks that all loaders of codecs and embedders share."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.common.errors import InputError, one_line

_ERRORS = (
    OSError, SafetensorError, pickle.UnpicklingError, EOFError, LookupError, RuntimeError, ValueError, TypeError,
    AttributeError, AssertionError, SyntaxError,
)  # fmt: skip


@contextmanager
def report_damage(source: str, remedy: str) -> Iterator[None]:
    """Convert the errors that a damaged file or one of another model raises into an InputError.

    Args:
        source: The file or setting, the start of the message.
        remedy: What to do, the end of the message.
    """
    try:
        yield
    except InputError:
        raise
    except _ERRORS as error:
        why = f"there is no {one_line(error)} in it" if isinstance(error, KeyError) else one_line(error)
        what = "cannot be read" if isinstance(error, OSError) else "is damaged or of another model"
        raise InputError(f"{source} {what} ({why:.200}); {remedy}") from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError with the name of the first tensor that contains NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains NaN or infinite values")
