"""Parameter counts and FLOPs by formula, compared with the built model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import Adapter, add_adapter
from pipeline.models.model_config import ModelConfig
from pipeline.models.patterns import PATTERNS
from tests.helpers.models import GPT2_SMALL, PATTERN_OPTIONS, TINY, tiny_config


@settings(max_examples=15)
@given(
    config=st.builds(
        ModelConfig,
        codebooks=st.integers(1, 9),
        pattern=st.sampled_from(PATTERNS.names()),
        prompt_dim=st.sampled_from([12, 16, 24]),
        width=st.sampled_from([12, 24]),
        layers=st.integers(0, 3),
        heads=st.just(3),
        positions=st.integers(1, 200),
        dropout=st.just(0.0),
        prompt_dropout=st.just(0.0),
        end_of_audio=st.booleans(),
        codebook_size=st.sampled_from([16, 1024]),
    )
)
def test_counts_equal_those_of_the_built_model(config: ModelConfig) -> None:
    config = replace(config, pattern_options=PATTERN_OPTIONS.get(config.pattern, {}))
    model = CodecGPT(config)
    assert model_stats.num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert model_stats.parameter_counts(config)["head"] == sum(p.numel() for p in model.head.parameters())


def test_gpt2_small_has_the_published_count() -> None:
    """124.4 M parameters, without the embedding of the vocabulary of 50,257 words, which is not used here."""
    assert model_stats.parameter_counts(GPT2_SMALL)["backbone"] == 124_439_808 - 50_257 * 768


@pytest.mark.parametrize(
    "changes", [{}, {"pattern": "depth"}, {"pattern": "depth", "codebooks": 1, "codebook_size": 3}]
)
def test_largest_module_equals_that_of_the_model(changes: dict[str, Any]) -> None:
    config = tiny_config(width=48, positions=300, **changes)
    modules = CodecGPT(config).modules()
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in modules]
    assert model_stats.largest_module(config) == max(sizes)


@pytest.mark.parametrize(("pattern", "steps"), [("parallel", 24), ("delay", 27), ("flatten", 96)])
def test_flops_are_those_of_the_matrices(pattern: str, steps: int) -> None:
    config = replace(TINY, pattern=pattern, codebooks=4)
    D, L, C, K, T = config.width, config.layers, 1025, 4, 24
    assert model_stats.training_flops(config, T) == 6 * (12 * L * D * D * steps + K * C * D * T) + 12 * L * D * steps**2


def test_flops_of_a_depth_transformer_are_counted() -> None:
    """Against the parallel pattern, which has the same backbone and steps."""
    options, counted, formula = {"layers": 3, "width": 64, "heads": 2}, [], []
    for config in (tiny_config(pattern="depth", pattern_options=options), tiny_config(pattern="parallel")):
        with FlopCounterMode(display=False) as counter:
            CodecGPT(config)(torch.randint(0, 1024, (1, 4, 24)))[0].sum().backward()
        counted.append(counter.get_total_flops())
        formula.append(model_stats.training_flops(config, 24))
    assert counted[0] - counted[1] == pytest.approx(formula[0] - formula[1], rel=0.02)


def test_flops_of_an_adapter_are_those_that_torch_counts() -> None:
    """Frozen weights have no gradients: the difference to training all weights is what PyTorch counts less."""
    config = replace(TINY, width=64, layers=4)
    adapter = Adapter(rank=8, alpha=8.0, dropout=0.0, train_embeddings=False, base="", base_sha256="")
    counted = []
    for each in (None, adapter):
        model = CodecGPT(config)
        if each:
            add_adapter(model, each)
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(0, 1024, (1, 4, 24)), None, {"prompt": torch.randn(1, 12)})[0].sum().backward()
        counted.append(counter.get_total_flops() - model_stats.training_flops(config, 24, each))
    assert counted[0] == pytest.approx(counted[1], abs=0.02 * model_stats.training_flops(config, 24))
