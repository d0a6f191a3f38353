"""fp32 means fp32: half precision and TF32 flip codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
from torch import backends

NEW = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")  # since torch 2.9
OLD = ("cuda.matmul", "cudnn")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, autocast and TF32 are off whatever the caller has set, and cuDNN takes no algorithm by chance."""
    new = hasattr(backends.cudnn, "conv")
    knobs = [attrgetter(name)(backends) for name in (NEW if new else OLD)]
    knob, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = [getattr(part, knob) for part in knobs]
    matmul = torch.get_float32_matmul_precision()
    chance = backends.cudnn.benchmark, backends.cudnn.deterministic
    for part in knobs:
        setattr(part, knob, exact)
    backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, value in zip(knobs, before, strict=True):
            setattr(part, knob, value)
        if torch.get_float32_matmul_precision() != matmul:  # before torch 2.9: TF32 is "high", and "medium" was set
            torch.set_float32_matmul_precision(matmul)
        backends.cudnn.benchmark, backends.cudnn.deterministic = chance
