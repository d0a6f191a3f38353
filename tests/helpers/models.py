"""Small models for tests."""

from dataclasses import replace
from typing import Any

import torch

from pipeline.models.codec_gpt import CodecGPT, ModelConfig

TINY = ModelConfig(
    codebooks=4, pattern="delay", prompt_dim=12, width=32, layers=2, heads=4, positions=128, dropout=0.0,
    prompt_dropout=0.0, end_of_audio=False,
)  # fmt: skip


def tiny(seed: int = 0, **changes: Any) -> CodecGPT:
    """A fresh model of `TINY` with some settings changed; its head is random, so that its logits say something."""
    torch.manual_seed(seed)
    model = CodecGPT(replace(TINY, **changes))
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model
