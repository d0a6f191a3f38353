"""Full fp32 precision: half precision and TF32 change codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
from torch import backends

NEW = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")  # since torch 2.9
OLD = ("cuda.matmul", "cudnn")


def codec_device(device: torch.device) -> torch.device:
    """The device of codec and embedder beside a model on `device`: the CPU beside Apple's GPU.

    Its kernels choose other codes: EnCodec's quantizer was wrong there in public reports.
    """
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast, TF32 and nondeterministic cuDNN algorithms within the block, and restore them after it."""
    is_new = hasattr(backends.cudnn, "conv")
    parts = [attrgetter(name)(backends) for name in (NEW if is_new else OLD)]
    attribute, exact = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    before = [getattr(part, attribute) for part in parts]
    matmul = torch.get_float32_matmul_precision()
    cudnn = backends.cudnn.benchmark, backends.cudnn.deterministic
    for part in parts:
        setattr(part, attribute, exact)
    backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, attribute, value)
        if torch.get_float32_matmul_precision() != matmul:  # before torch 2.9, "medium" would be restored as "high"
            torch.set_float32_matmul_precision(matmul)
        backends.cudnn.benchmark, backends.cudnn.deterministic = cudnn
