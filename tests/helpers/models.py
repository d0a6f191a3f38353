"""Small models for tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.generation.engine import InferenceEngine
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.conditions import PROMPT
from pipeline.models.model_config import ModelConfig
from pipeline.models.pattern import Pattern, build_pattern

TINY = ModelConfig(
    codebooks=4, pattern="delay", prompt_dim=12, width=32, layers=2, heads=4, positions=128, dropout=0.0,
    prompt_dropout=0.0, end_of_audio=False,
)  # fmt: skip
GPT2_SMALL = ModelConfig(
    codebooks=8, pattern="delay", prompt_dim=768, width=768, layers=12, heads=12, positions=1024, dropout=0.1,
    prompt_dropout=0.1, end_of_audio=False,
)  # fmt: skip
# a condition of each kind
LABELED: list[dict[str, Any]] = [
    {"kind": "prompt", "name": "prompt", "dropout": 0.0},
    {"kind": "category", "name": "pitch", "dropout": 0.0, "values": ["60", "62", "64"]},
    {"kind": "number", "name": "velocity", "dropout": 0.0, "low": 1.0, "high": 127.0},
    {"kind": "tags", "name": "tags", "dropout": 0.0, "values": ["bright", "dark", "long"]},
]


PATTERN_OPTIONS = {"depth": {"layers": 1, "width": 32, "heads": 2}}  # of patterns that have settings


def pattern_of(name: str, codebooks: int) -> Pattern:
    """A pattern, with the settings of small models."""
    return build_pattern(name, codebooks, PATTERN_OPTIONS.get(name))


def tiny_config(**changes: Any) -> ModelConfig:
    """`TINY` with some fields changed; a pattern has the settings of small models."""
    options = PATTERN_OPTIONS.get(changes.get("pattern", TINY.pattern), {})
    return replace(TINY, **{"pattern_options": options, **changes})


def step_logits(engine: InferenceEngine, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The logits [B, K, C] of a step whose tokens [B, K] are known, from the output of the backbone [B, D]."""
    logits = []

    def choose(i: int, of_group: Tensor) -> Tensor:
        logits.append(of_group)
        return tokens[:, engine.head.groups[i]]

    engine.head(hidden, choose)
    return torch.cat(logits, 1)


def tiny(seed: int = 0, **changes: Any) -> CodecGPT:
    """A new model of `TINY` with some fields changed; its head is random, so that its logits are not near zero."""
    torch.manual_seed(seed)
    model = CodecGPT(tiny_config(**changes))
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
