"""Small models for tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.conditions import PROMPT
from pipeline.models.model_config import ModelConfig

TINY = ModelConfig(
    codebooks=4, pattern="delay", prompt_dim=12, width=32, layers=2, heads=4, positions=128, dropout=0.0,
    prompt_dropout=0.0, end_of_audio=False,
)  # fmt: skip
GPT2_SMALL = ModelConfig(
    codebooks=8, pattern="delay", prompt_dim=768, width=768, layers=12, heads=12, positions=1024, dropout=0.1,
    prompt_dropout=0.1, end_of_audio=False,
)  # fmt: skip


def tiny(seed: int = 0, **changes: Any) -> CodecGPT:
    """A new model of `TINY` with some fields changed; its head is random, so that its logits are not near zero."""
    torch.manual_seed(seed)
    model = CodecGPT(replace(TINY, **changes))
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model


def train_on_clips(model: CodecGPT, codes: Tensor, frames: Tensor | None, prompts: Tensor, steps: int) -> float:
    """Train a model on clips [B, K, T] with prompts [B, P]; the last loss per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss_sums, num_tokens = model(codes, frames, {PROMPT: prompts})
        loss = loss_sums.sum() / num_tokens.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
