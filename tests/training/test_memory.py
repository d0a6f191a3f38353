"""Memory by formula, compared with what autograd stores and with DeepSpeed's own estimators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import Adapter, add_adapter
from pipeline.models.model_config import ModelConfig
from pipeline.training import memory
from pipeline.training.memory import MemoryEstimate, ShardingConfig
from tests.helpers.models import GPT2_SMALL, TINY, tiny_config


@pytest.mark.parametrize("ranks", [1, 8, 16])
def test_state_bytes_equal_deepspeeds_estimates(ranks: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    P, largest, per_node = 97_000_000, 6_000_000, min(ranks, 8)
    nodes = ranks // per_node

    def ours(stage: int, **offload: bool) -> tuple[int, int]:
        sharding = ShardingConfig(stage, bf16=True, ranks=ranks, ranks_per_node=per_node, **offload)  # type: ignore[arg-type]
        host = memory.host_bytes(P, largest, sharding)
        return host, memory.model_state_bytes(P, largest, sharding).total

    for offload in (False, True):
        host, device = zero2(P, per_node, nodes, cpu_offload=offload)
        assert ours(2, offload_optimizer=offload) == (host, pytest.approx(device, abs=8))
    for optimizer, weights in ((False, False), (True, False), (True, True)):
        host, device, _ = zero3(
            P, largest, per_node, nodes, cpu_offload=optimizer, cpu_offload_params=weights, zero_init=False
        )
        missing = 0 if optimizer else 2 * P / ranks  # half of the fp32 gradients, which DeepSpeed leaves out
        expected = (host, pytest.approx(device + missing, abs=8))
        assert ours(3, offload_optimizer=optimizer, offload_weights=weights) == expected


def states(stage: int, bf16: bool, ranks: int, largest: int = 10**7) -> MemoryEstimate:
    """Bytes of 10**9 parameters."""
    return memory.model_state_bytes(10**9, largest, ShardingConfig(stage, bf16, ranks, ranks))


def test_each_zero_stage_shards_one_more_state() -> None:
    stages = [states(stage, bf16=True, ranks=8) for stage in range(4)]
    assert stages[0].optimizer == 8 * stages[1].optimizer == 12 * 10**9
    assert stages[1].gradients > stages[2].gradients == stages[3].gradients + stages[3].buffers
    assert stages[2].weights == 2 * 10**9 > stages[3].weights
    stage_0, stage_1 = (states(stage, bf16=False, ranks=1, largest=0) for stage in (0, 1))
    assert stage_0.total == 16 * 10**9 and stage_1.total == 24 * 10**9  # ZeRO copies even fp32 weights


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mode", ["eager", "compiled", "checkpointed"])
def test_activation_bytes_equal_what_autograd_stores(compiler: None, mode: str, bf16: bool) -> None:
    config = replace(TINY, width=64, layers=6, positions=256)
    batch, frames = 3, 80
    steps = frames + config.codebooks - 1
    stored = bytes_stored_by_autograd(config, mode, batch, frames, torch.bfloat16 if bf16 else torch.float32)
    estimate = memory.activation_bytes(config, ShardingConfig(0, bf16, 1, 1), batch, frames, steps, mode)
    log_probabilities = memory.logits_bytes(config, batch, frames) // 3
    assert estimate + log_probabilities == pytest.approx(stored, rel=0.03)


@pytest.mark.parametrize("mode", ["eager", "checkpointed"])
def test_transformer_over_codebooks_stores_what_is_estimated(mode: str) -> None:
    options, batch, frames = {"layers": 5, "width": 64, "heads": 2}, 3, 80
    config = tiny_config(width=64, layers=6, positions=256, pattern="depth", pattern_options=options)
    stored = bytes_stored_by_autograd(config, mode, batch, frames, torch.float32)
    estimate = memory.activation_bytes(config, ShardingConfig(0, False, 1, 1), batch, frames, frames, mode)
    log_probabilities = memory.logits_bytes(config, batch, frames) // 3
    assert estimate + log_probabilities == pytest.approx(stored, rel=0.03)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["eager", "compiled", "checkpointed"])
def test_adapters_store_what_the_estimate_says(compiler: None, mode: str, dropout: float) -> None:
    """Weights that are frozen have no gradients and no optimizer; their inputs are stored nevertheless."""
    config, batch, frames = replace(TINY, width=64, layers=6, positions=256), 3, 80
    adapter = Adapter(rank=8, alpha=16.0, dropout=dropout, train_embeddings=False, base="", base_sha256="")
    steps, sharding = frames + config.codebooks - 1, ShardingConfig(1, False, 1, 1)
    stored = bytes_stored_by_autograd(config, mode, batch, frames, torch.float32, adapter)
    estimate = memory.activation_bytes(config, sharding, batch, frames, steps, mode, adapter)
    log_probabilities = memory.logits_bytes(config, batch, frames) // 3
    assert estimate + log_probabilities == pytest.approx(stored, rel=0.08)
    model = CodecGPT(config)
    add_adapter(model, adapter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == model_stats.num_trained(config, adapter) == model_stats.adapter_parameters(config, adapter)
    whole, low_rank = (memory.estimate_memory(config, sharding, batch, frames, mode, a) for a in (None, adapter))
    assert low_rank.optimizer == 12 * trained and low_rank.weights == whole.weights + 4 * trained


def test_dropout_masks_take_a_byte_per_number_unless_compiled() -> None:
    sharding, shape = ShardingConfig(1, True, 1, 1), (16, 300, 307)
    without = replace(GPT2_SMALL, dropout=0.0)

    def size(config: ModelConfig, mode: str) -> int:
        return memory.activation_bytes(config, sharding, *shape, mode)

    assert size(GPT2_SMALL, "eager") - size(without, "eager") == (2 * 12 + 1) * 16 * 307 * 768
    assert size(GPT2_SMALL, "compiled") == size(without, "compiled")


def bytes_stored_by_autograd(
    config: ModelConfig, mode: str, batch: int, frames: int, dtype: torch.dtype, adapter: Adapter | None = None
) -> int:
    """Bytes of everything that a forward pass saves, except parameters."""
    model = CodecGPT(config).to(dtype)
    if adapter:
        add_adapter(model, adapter)
    if mode == "checkpointed":
        model.enable_checkpointing()
    if mode == "compiled":
        for block in model.backbone.h:
            block.compile(backend="aot_eager_decomp_partition")  # chooses what to save as the real compiler does
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in parameters:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sums, _ = model(
            torch.randint(0, 1024, (batch, config.codebooks, frames)), None, {"prompt": torch.randn(batch, 12)}
        )
    assert loss_sums.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
