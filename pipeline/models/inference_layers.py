"""Layers of a model for inference, with prepacked weights.

On a CPU the products run in oneDNN with prepacked weights. This is faster than a plain product for two rows or more.
It also makes the result batch-invariant: a row gets the same bits alone, in a batch, and with any number of threads. A
plain matrix-vector product of a single row differs in the last bits. Its speed depends on the CPU: on one machine it
was a quarter faster, on another half as fast. `batch_invariant=False` uses it for single rows.

Letters: M and B rows, n positions, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.quantization import Int8Linear

GELU = "gelu_pytorch_tanh"  # GPT-2's activation as one operation; transformers' own implementation has eight
_MAX_SUM = 1024  # up to this many products, oneDNN sums in an order that does not depend on the number of rows
_PACKED_ROWS = 16  # the number of rows for which the weights are packed


LinearBuilder = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]  # from a weight [in, out] and a bias [out]


def linear_builder(model_is_quantized: bool, device: torch.device, batch_invariant: bool) -> LinearBuilder:
    """How the linear layers of a model are computed.

    Args:
        model_is_quantized: Whether its weights have 8 bits.
        device: Where it is.
        batch_invariant: CPU: whether a single row must get the same bits as in a batch. False may be faster.
    """
    if model_is_quantized and device.type == "cpu":
        return Int8Linear
    return partial(PackedLinear, batch_invariant=batch_invariant)


class PackedLinear:
    """A linear layer: x [M, in] -> x @ weight + bias [M, out]. weight: [in, out], in either memory layout."""

    def __init__(self, weight: Tensor, bias: Tensor, batch_invariant: bool) -> None:
        self.weight, self.bias, self.batch_invariant = weight, bias, batch_invariant
        self.is_packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_packed_linear()
        self._packed: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if not self.is_packed or (len(x) == 1 and not self.batch_invariant):
            return torch.addmm(self.bias, x, self.weight)
        packed = self._packed or self._pack()
        parts = x.split(-(-x.shape[1] // len(packed)), dim=1)
        product = torch.ops.mkldnn._linear_pointwise
        y: Tensor = product(parts[0].contiguous(), packed[0], self.bias, "none", [], "")
        for part, weight in zip(parts[1:], packed[1:], strict=True):
            y += product(part.contiguous(), weight, None, "none", [], "")
        return y

    def _pack(self) -> list[Tensor]:
        size = -(-len(self.weight) // -(-len(self.weight) // _MAX_SUM))
        parts = self.weight.split(size)
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(part.t().contiguous(), _PACKED_ROWS) for part in parts]
        return self._packed


def _has_packed_linear() -> bool:
    """Whether this build of PyTorch has oneDNN's operators for packed weights, which its compiler uses."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@dataclass(frozen=True)
class DecoderLayer:
    """The layers of one GPT-2 block."""

    attention_norm: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    mlp_norm: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class InferenceLayers:
    """The layers of a GPT-2 and its last norm.

    Args:
        transformer: The GPT-2.
        build: Builds its linear layers.
    """

    def __init__(self, transformer: nn.Module, build: LinearBuilder) -> None:
        gpt2 = cast(Any, transformer)
        self.heads: int = gpt2.config.n_head
        self.norm: Callable[[Tensor], Tensor] = gpt2.ln_f
        self.layers = [
            DecoderLayer(
                attention_norm=block.ln_1,
                qkv=build(merged_weight(block.attn.c_attn), block.attn.c_attn.bias),
                out=build(merged_weight(block.attn.c_proj), block.attn.c_proj.bias),
                mlp_norm=block.ln_2,
                up=build(merged_weight(block.mlp.c_fc), block.mlp.c_fc.bias),
                down=build(merged_weight(block.mlp.c_proj), block.mlp.c_proj.bias),
            )
            for block in gpt2.h
        ]

    def __len__(self) -> int:
        return len(self.layers)

    def __call__(self, x: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """The output [B, D] at the last position of inputs x [B, n, D], which include position embeddings.

        attend: Gets the layer's index and q, k, v, each [B, H, n, D / H].
        """
        B, n, D = x.shape
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.attention_norm(x).view(B * n, D)).view(B, n, 3, self.heads, -1)
            attended = attend(i, *(part.transpose(1, 2) for part in qkv.unbind(2)))  # [B, H, n, D / H]
            x = x + layer.out(attended.transpose(1, 2).reshape(B * n, D)).view(B, n, D)
            hidden = F.gelu(layer.up(layer.mlp_norm(x).view(B * n, D)), approximate="tanh")
            x = x + layer.down(hidden).view(B, n, D)
        return self.norm(x[:, -1])


def merged_weight(layer: Any) -> Tensor:
    """The weight [in, out] of a layer of the backbone, with its adapters where it has any."""
    weight: Tensor = layer.weight
    for name in getattr(layer, "active_adapters", ()):
        weight = weight + layer.get_delta_weight(name)
    return weight
