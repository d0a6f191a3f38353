"""What training a model takes, by formula: nothing is built. Tests hold each formula against the real thing.

    weights       b P          (bf16: b = 2, else 4)           a share of 1/N at ZeRO-3, and one layer gathered whole
    gradients     b P          + 4 P/N in fp32 for the update  a share of 1/N from ZeRO-2 on
    optimizer     12 P         fp32 weights, two moments       a share of 1/N from ZeRO-1 on
    activations   b B S D a L  what the forward pass keeps for the backward pass; the next three formulas say which
    logits        12 B K T C   log-probabilities, their gradient and the logits' gradient, in fp32

Letters: P parameters, N ranks, b bytes a number, B clips of a micro-batch, S steps, D width, L layers, H heads,
K codebooks, T frames, C classes, a numbers kept for each step, width and layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.models.codec_gpt import ModelConfig
from pipeline.models.patterns import Pattern

# numbers that a GPT-2 layer keeps, in multiples of B S D: two norms' inputs and outputs (4), queries, keys and values
# (3), the attention's output (1), and the feed-forward's two, each 4 wide
_KEPT = 16
_KEPT_CHECKPOINTED = 1  # the layer's input alone


@dataclass(frozen=True)
class ShardingConfig:
    """How a model is trained: ZeRO stage, precision, ranks, and what lives in the machine's own memory."""

    stage: int
    bf16: bool
    ranks: int
    ranks_here: int  # of this machine
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 0  # elements of the buffer through which gradients are reduced

    @property
    def width(self) -> int:
        """Bytes a number of weights and activations."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True)
class ModelStateBytes:
    """Bytes that a model takes on one rank's device, whatever the batch.

    Gradients, and the buffer to reduce them, are there from the backward pass to the update; the rest always.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int

    @property
    def persistent(self) -> int:
        """What is always there."""
        return self.weights + self.optimizer + self.buffers

    @property
    def total(self) -> int:
        """With gradients."""
        return self.persistent + self.gradients


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of a CodecGPT."""
    D, K, P = config.width, config.codebooks, config.prompt_dim
    classes = config.codebook_size + 1
    return {
        "backbone": config.positions * D + config.layers * (12 * D * D + 13 * D) + 2 * D,
        "codes": K * classes * D,
        "head": K * classes * (D + 1),
        "prompt": D + (0 if P == D else P * D + D),
    }


def num_parameters(config: ModelConfig) -> int:
    """How many parameters a CodecGPT has."""
    return sum(parameter_counts(config).values())


def training_flops(config: ModelConfig, frames: float) -> float:
    """Floating-point operations of training on one clip of so many frames.

    6 a weight and position that meets it (Kaplan et al. 2020), and for attention's own products 12 L D S S.
    """
    D, K = config.width, config.codebooks
    steps = Pattern(config.pattern, K).num_steps(round(frames))
    head = frames * K * (config.codebook_size + 1) * D  # each code is predicted by its codebook's classifier alone
    return 6 * (12 * config.layers * D * D * steps + head) + 12 * config.layers * D * steps**2


def largest_module(config: ModelConfig) -> int:
    """Parameters of the largest module, which ZeRO-3 gathers whole."""
    D = config.width
    return max(parameter_counts(config)["head"], 4 * D * D + 4 * D, config.positions * D)


def model_state_bytes(total: int, biggest: int, setup: ShardingConfig) -> ModelStateBytes:
    """What `total` parameters take, the largest module having `biggest`.

    The sums are those of DeepSpeed's own estimators (estimate_zero2/zero3_model_states_mem_needs) where they say
    anything: bf16 at stages 2 and 3. At stage 3 theirs leave out the fp32 gradients' half, 2 P/N.
    """
    stage, b, N = setup.stage, setup.width, setup.ranks
    share = N if stage >= 1 else 1
    master = 4 if setup.bf16 or stage >= 1 else 0  # DeepSpeed keeps a copy to update, of fp32 weights too
    weights: float = b * total
    gradients: float = b * total / (N if stage >= 2 else 1) + (4 * total / share if master else 0)
    optimizer: float = (master + 8) * total / share
    bucket = b * setup.bucket if stage >= 1 else 0  # made anew for each backward pass, but at stage 3
    buffers = 0.0
    if setup.offload_optimizer:
        gradients = optimizer = 0
    if stage == 3:
        weights = 4 * biggest + (0 if setup.offload_weights else b * total / N)
        if not setup.offload_optimizer:  # the rank's share of the gradients has a place of its own from the start
            gradients, buffers = 4 * total / N, b * total / N
        buffers += bucket
    else:
        gradients += bucket
    return ModelStateBytes(int(weights), int(gradients), int(optimizer), int(buffers))


def host_bytes(total: int, biggest: int, setup: ShardingConfig) -> int:
    """Bytes of a machine's own memory for all its ranks, by DeepSpeed's estimators: each builds the model there.

    They add half as much again for what else may be needed.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    machines = math.ceil(setup.ranks / setup.ranks_here)
    where = {"num_gpus_per_node": setup.ranks_here, "num_nodes": machines, "cpu_offload": setup.offload_optimizer}
    if setup.stage < 3:
        return estimate_zero2_model_states_mem_needs(total, **where)[0]
    where |= {"cpu_offload_params": setup.offload_weights, "zero_init": False}
    return estimate_zero3_model_states_mem_needs(total, biggest, **where)[0]


def activation_bytes(
    config: ModelConfig, setup: ShardingConfig, batch: int, frames: int, steps: int, mode: str = "eager"
) -> int:
    """Bytes that a forward pass keeps for the backward pass, logits aside. mode: eager, compiled or checkpointed.

    Attention is a fused kernel, so nothing of size S x S is kept. With dropout the eager mode keeps a byte for each
    number that may be dropped.
    """
    row = batch * steps * config.width
    layers = config.layers * (_KEPT_CHECKPOINTED if mode == "checkpointed" else _KEPT)
    masks = (2 * config.layers + 1) * row if config.dropout and mode == "eager" else 0
    around = 2 * row + batch * config.codebooks * frames * config.width  # the last norm, and the rows that predict
    return setup.width * (layers * row + around) + masks


def logits_bytes(config: ModelConfig, batch: int, frames: int) -> int:
    """Bytes of the classifiers' outputs and their gradients at the peak, when the backward pass begins."""
    return 12 * batch * config.codebooks * frames * (config.codebook_size + 1)


def recompute_bytes(config: ModelConfig, setup: ShardingConfig, batch: int, steps: int) -> int:
    """Bytes of a layer that activation checkpointing computes again in the backward pass, the logits gone by then."""
    return setup.width * _KEPT * batch * steps * config.width


def checkpoint_bytes(total: int, setup: ShardingConfig, ema: bool = False) -> int:
    """Bytes on disk of one checkpoint over all ranks."""
    weights = 0 if setup.stage == 3 else setup.width * total
    master = 4 * total if setup.bf16 or setup.stage >= 1 else 0
    return weights + master + 8 * total + (4 * total if ema else 0)
