"""What a model takes, by formula, against the model itself, what autograd keeps, and DeepSpeed's own estimators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT, ModelConfig
from pipeline.models.model_stats import ShardingConfig
from pipeline.models.patterns import NAMES
from tests.helpers.models import TINY

GPT2 = ModelConfig(
    codebooks=8, pattern="delay", prompt_dim=768, width=768, layers=12, heads=12, positions=1024, dropout=0.1,
    prompt_dropout=0.1, end_of_audio=False,
)  # fmt: skip


@settings(max_examples=15)
@given(
    config=st.builds(
        ModelConfig,
        codebooks=st.integers(1, 9),
        pattern=st.sampled_from(NAMES),
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
def test_parameters_are_counted_without_building_the_model(config: ModelConfig) -> None:
    model = CodecGPT(config)
    assert model_stats.num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert model_stats.parameter_counts(config)["head"] == sum(p.numel() for p in model.head.parameters())


def test_gpt2_small_has_gpt2s_parameters() -> None:
    """124.4 M with its vocabulary of 50,257 words, whose rows nobody reads here."""
    assert model_stats.parameter_counts(GPT2)["backbone"] == 124_439_808 - 50_257 * 768


def test_the_largest_module_is_the_one_that_zero3_gathers_whole() -> None:
    config = replace(TINY, width=48, positions=300)
    modules = CodecGPT(config).modules()
    assert model_stats.largest_module(config) == max(
        sum(p.numel() for p in m.parameters(recurse=False)) for m in modules
    )


@pytest.mark.parametrize("ranks", [1, 8, 16])
def test_states_are_what_deepspeed_estimates_where_it_does(ranks: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    P, L, here = 97_000_000, 6_000_000, min(ranks, 8)
    nodes = ranks // here

    def ours(stage: int, **offload: bool) -> tuple[int, int]:
        setup = ShardingConfig(stage, bf16=True, ranks=ranks, ranks_here=here, **offload)
        return model_stats.host_bytes(P, L, setup), model_stats.model_state_bytes(P, L, setup).total

    for offload in (False, True):
        host, device = zero2(P, here, nodes, cpu_offload=offload)
        assert ours(2, offload_optimizer=offload) == (host, pytest.approx(device, abs=8))
    for optimizer, weights in ((False, False), (True, False), (True, True)):
        host, device, _ = zero3(P, L, here, nodes, cpu_offload=optimizer, cpu_offload_params=weights, zero_init=False)
        found = ours(3, offload_optimizer=optimizer, offload_weights=weights)
        left_out = 0 if optimizer else 2 * P / ranks
        assert found == (host, pytest.approx(device + left_out, abs=8))


def test_each_stage_shares_out_one_thing_more() -> None:
    found = [
        model_stats.model_state_bytes(10**9, 10**7, ShardingConfig(stage, bf16=True, ranks=8, ranks_here=8))
        for stage in range(4)
    ]
    assert found[0].optimizer == 8 * found[1].optimizer == 12 * 10**9
    assert found[1].gradients > found[2].gradients == found[3].gradients + found[3].buffers
    assert found[2].weights == 2 * 10**9 > found[3].weights
    alone = [
        model_stats.model_state_bytes(10**9, 0, ShardingConfig(stage, bf16=False, ranks=1, ranks_here=1))
        for stage in (0, 1)
    ]
    assert alone[0].total == 16 * 10**9 and alone[1].total == 24 * 10**9  # ZeRO copies even fp32 weights


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mode", ["eager", "compiled", "checkpointed"])
def test_activations_are_what_autograd_keeps(compiler: None, mode: str, bf16: bool) -> None:
    config = replace(TINY, width=64, layers=6, positions=256)
    batch, frames = 3, 80
    steps = 80 + config.codebooks - 1
    setup = ShardingConfig(0, bf16, 1, 1)
    kept = kept_by_autograd(config, mode, batch, frames, torch.bfloat16 if bf16 else torch.float32)
    told = model_stats.activation_bytes(config, setup, batch, frames, steps, mode)
    log_probabilities = model_stats.logits_bytes(config, batch, frames) // 3
    assert told + log_probabilities == pytest.approx(kept, rel=0.03)


def test_dropout_keeps_a_byte_for_each_number_it_may_drop_unless_compiled() -> None:
    setup, shape = ShardingConfig(1, True, 1, 1), (16, 300, 307)
    dry = replace(GPT2, dropout=0.0)
    masks = model_stats.activation_bytes(GPT2, setup, *shape) - model_stats.activation_bytes(dry, setup, *shape)
    assert masks == (2 * 12 + 1) * 16 * 307 * 768
    assert model_stats.activation_bytes(GPT2, setup, *shape, "compiled") == model_stats.activation_bytes(
        dry, setup, *shape, "compiled"
    )


def kept_by_autograd(config: ModelConfig, mode: str, batch: int, frames: int, dtype: torch.dtype) -> int:
    """Bytes of all that a forward pass saves, parameters aside."""
    model = CodecGPT(config).to(dtype)
    if mode == "checkpointed":
        model.backbone.activation_checkpointing_enable()
    if mode == "compiled":
        for block in model.backbone.h:
            block.compile(backend="aot_eager_decomp_partition")  # decides what to keep as the real compiler does
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            found[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model(torch.randint(0, 1024, (batch, config.codebooks, frames)), None, torch.randn(batch, 12))
    assert kept[0].requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(("pattern", "steps"), [("parallel", 24), ("delay", 27), ("flatten", 96)])
def test_the_arithmetic_is_that_of_the_matrices(pattern: str, steps: int) -> None:
    config = replace(TINY, pattern=pattern, codebooks=4)
    D, L, C, K, T = config.width, config.layers, 1025, 4, 24
    assert model_stats.training_flops(config, T) == 6 * (12 * L * D * D * steps + K * C * D * T) + 12 * L * D * steps**2
