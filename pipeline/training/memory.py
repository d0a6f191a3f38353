"""Memory and disk that training takes, by formula: nothing is built. Tests compare each formula with the real thing.

    weights       b P          (bf16: b = 2, else 4)           1/N of it at ZeRO-3, plus one module gathered
    gradients     b P          + 4 P/N in fp32 for the update  1/N of it from ZeRO-2 on
    optimizer     12 P         fp32 weights and two moments    1/N of it from ZeRO-1 on
    activations   b B S D a L  stored by the forward pass for the backward pass
    logits        12 B K T C   log-probabilities, their gradient and the gradient of the logits, in fp32

Where an adapter is trained, gradients and optimizer are those of its parameters.

Letters: P parameters, N ranks, b bytes per number, B clips of a micro-batch, S steps, D width, L layers, K codebooks,
T frames, C classes, a numbers stored per step, width and layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pipeline.models import model_stats
from pipeline.models.lora import Adapter
from pipeline.models.model_config import ModelConfig
from pipeline.training.settings import ZeroSettings

# numbers that a GPT-2 layer stores, in multiples of B S D: inputs and outputs of two norms (4); queries, keys and
# values (3); the output of attention (1); and the two feed-forward activations (4 each)
_STORED_PER_LAYER = 16
_STORED_PER_CHECKPOINTED_LAYER = 1  # only the input of the layer


@dataclass(frozen=True)
class ShardingConfig:
    """How a model is sharded: ZeRO stage, precision, ranks, and what is offloaded to host memory."""

    stage: int
    bf16: bool
    ranks: int
    ranks_per_node: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket_size: int = 0  # elements of the buffer through which gradients are reduced

    @classmethod
    def of(cls, zero: ZeroSettings, bf16: bool, ranks: int, ranks_per_node: int) -> ShardingConfig:
        """The sharding by DeepSpeed's `zero_optimization` on some ranks."""
        offloads = zero.offloads("optimizer"), zero.offloads("param")
        return cls(zero.stage, bf16, ranks, ranks_per_node, *offloads, zero.bucket_size)

    @property
    def bytes_per_number(self) -> int:
        """Size of a weight or an activation."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device of one rank.

    Attributes:
        weights: of the model.
        gradients: with the buffer that reduces them; they exist from the backward pass to the update.
        optimizer: fp32 weights and moments.
        buffers: what ZeRO-3 allocates besides.
        activations: stored by the forward pass.
        temporary: the larger of the logits and a layer that is recomputed, both freed during the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.temporary

    @property
    def least(self) -> int:
        """What must be allocated at the same time: gradients replace activations during the backward pass."""
        persistent = self.weights + self.optimizer + self.buffers
        return persistent + max(self.gradients, self.activations + self.temporary)


def estimate_memory(
    config: ModelConfig, sharding: ShardingConfig, batch: int, frames: int, mode: str, adapter: Adapter | None = None
) -> MemoryEstimate:
    """Memory of one rank that trains a model, or its adapter; see `activation_bytes` for the arguments."""
    trained = model_stats.num_trained(config, adapter)
    parameters = model_stats.num_parameters(config) + (
        model_stats.adapter_parameters(config, adapter) if adapter else 0
    )
    states = model_state_bytes(parameters, model_stats.largest_module(config), sharding, trained)
    frames += config.end_of_audio
    steps = config.build_pattern().num_steps(frames) + config.prefix_length - 1
    # a layer that is recomputed in the backward pass, after the logits are freed
    widest = max(steps * config.width, frames * config.codebooks * config.head_cost.width)
    layer = sharding.bytes_per_number * _STORED_PER_LAYER * batch * widest
    temporary = max(logits_bytes(config, batch, frames), layer if mode == "checkpointed" else 0)
    activations = activation_bytes(config, sharding, batch, frames, steps, mode, adapter)
    return replace(states, activations=activations, temporary=temporary)


def model_state_bytes(
    parameters: int, largest_module: int, sharding: ShardingConfig, trained: int | None = None
) -> MemoryEstimate:
    """Bytes of weights, gradients and optimizer on the device of one rank, whatever the batch size.

    The sums are those of DeepSpeed's own estimators (estimate_zero2/zero3_model_states_mem_needs) where these apply: to
    bf16 at stages 2 and 3. At stage 3 theirs leave out half of the fp32 gradients, 2 P/N.

    Args:
        parameters: number of parameters of the model.
        largest_module: number of parameters of the largest module, which ZeRO-3 gathers.
        sharding: how they are sharded.
        trained: number of parameters that are trained; None: all.
    """
    stage, b, N = sharding.stage, sharding.bytes_per_number, sharding.ranks
    trained = parameters if trained is None else trained
    shards = N if stage >= 1 else 1
    master = 4 if sharding.bf16 or stage >= 1 else 0  # DeepSpeed updates a copy, even of fp32 weights
    weights: float = b * parameters
    gradients: float = b * trained / (N if stage >= 2 else 1) + (4 * trained / shards if master else 0)
    optimizer: float = (master + 8) * trained / shards
    bucket = b * sharding.bucket_size if stage >= 1 else 0  # allocated in each backward pass, at stage 3 only once
    buffers = 0.0
    if sharding.offload_optimizer:
        gradients = optimizer = 0
    if stage == 3:
        weights = 4 * largest_module + (0 if sharding.offload_weights else b * parameters / N)
        if not sharding.offload_optimizer:  # the rank's gradients have a buffer from the start
            gradients, buffers = 4 * trained / N, b * trained / N
        buffers += bucket
    else:
        gradients += bucket
    return MemoryEstimate(int(weights), int(gradients), int(optimizer), int(buffers))


def host_bytes(parameters: int, largest_module: int, sharding: ShardingConfig) -> int:
    """Bytes of host memory for all ranks of a node, by DeepSpeed's estimators: each rank builds the model there.

    They include a margin of 50 %, and so does the estimate for plain PyTorch where DeepSpeed is not installed.
    """
    try:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    except ImportError:  # plain PyTorch
        return 6 * parameters
    nodes = math.ceil(sharding.ranks / sharding.ranks_per_node)
    layout = {"num_gpus_per_node": sharding.ranks_per_node, "num_nodes": nodes}
    layout |= {"cpu_offload": sharding.offload_optimizer}
    if sharding.stage < 3:
        return int(estimate_zero2_model_states_mem_needs(parameters, **layout)[0])
    layout |= {"cpu_offload_params": sharding.offload_weights, "zero_init": False}
    return int(estimate_zero3_model_states_mem_needs(parameters, largest_module, **layout)[0])


def activation_bytes(
    config: ModelConfig, sharding: ShardingConfig, batch: int, frames: int, steps: int, mode: str = "eager",
    adapter: Adapter | None = None,
) -> int:  # fmt: skip
    """Bytes that a forward pass stores for the backward pass, without the logits.

    Attention is a fused kernel, so no S x S matrix is stored. In eager mode, dropout stores a byte for each
    number that it may drop.

    Args:
        config: the model.
        sharding: gives the precision.
        batch: clips of a micro-batch.
        frames: frames of each clip.
        steps: steps of these frames under the model's pattern.
        mode: `eager`, `compiled` or `checkpointed` (activation checkpointing).
        adapter: what is trained; None: all weights. It stores A x of four matrices, and what dropout leaves of x.
    """
    row, codes, head = batch * steps * config.width, batch * config.codebooks * frames, config.head_cost
    stored = _STORED_PER_CHECKPOINTED_LAYER if mode == "checkpointed" else _STORED_PER_LAYER
    layers = stored * (config.layers * row + head.layers * codes * head.width)
    masks = 0
    if config.dropout and mode == "eager":
        masks = (2 * config.layers + 1) * row + (2 * head.layers + bool(head.layers)) * codes * head.width
    around = 2 * row + codes * config.width  # the last norm, and the input of the heads
    around += codes * (2 * head.width + config.width) if head.layers else 0  # its last norm, and what is classified
    if adapter and mode != "checkpointed":
        around += 4 * adapter.rank * batch * steps * config.layers
        if adapter.dropout:  # a mask for each number; compiled, the dropped inputs are computed again from it
            masks += 7 * row * config.layers
            around += 7 * row * config.layers if mode == "eager" else 0
    return sharding.bytes_per_number * (layers + around) + masks


def logits_bytes(config: ModelConfig, batch: int, frames: int) -> int:
    """Peak bytes of the logits and their gradients, when the backward pass begins."""
    return 12 * batch * config.codebooks * frames * (config.codebook_size + 1)


def checkpoint_bytes(trained: int, sharding: ShardingConfig, ema: bool = False) -> int:
    """Bytes on disk of one checkpoint of this many trained parameters, over all ranks."""
    weights = 0 if sharding.stage == 3 else sharding.bytes_per_number * trained
    master = 4 * trained if sharding.bf16 or sharding.stage >= 1 else 0
    return weights + master + 8 * trained + (4 * trained if ema else 0)
