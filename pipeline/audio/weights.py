"""Weights read from files: what all loaders of codecs and embedders refuse."""

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
def refused_if_damaged(where: str, remedy: str) -> Iterator[None]:
    """Turn what a damaged file, or one of another model, raises within into an InputError: where it is; the remedy."""
    try:
        yield
    except InputError:
        raise
    except _ERRORS as error:
        why = f"there is no {one_line(error)} in it" if isinstance(error, KeyError) else one_line(error)
        what = "cannot be read" if isinstance(error, OSError) else "is damaged or of another model"
        raise InputError(f"{where} {what} ({why:.200}); {remedy}") from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming the first, where a tensor holds numbers that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite")
