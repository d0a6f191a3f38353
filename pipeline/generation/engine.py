"""Inference engine for CodecGPT: decodes one position of every row at a time, over a preallocated KV cache.

Why not `transformers`: it spends a tenth of a millisecond per layer outside the matrix products and grows its cache by
copying. Here a layer is eight calls.

On a CPU the products run in oneDNN with prepacked weights. This is faster than a plain product for two rows or more.
It also makes the result batch-invariant: a row gets the same bits alone, in a batch, and with any number of threads. A
plain matrix-vector product of a single row differs in the last bits. Its speed depends on the CPU: on one machine it
was a quarter faster, on another half as fast. `batch_invariant=False` uses it for single rows.

On a GPU `decode_step` can be captured as a CUDA graph: see `cuda_graph.py`.

Letters: B rows, n positions, L positions of the prefix, D width, H heads, K codebooks, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.codec_gpt import GELU, CodecGPT
from pipeline.models.lora import merged_weight

_MAX_SUM = 1024  # up to this many products, oneDNN sums in an order that does not depend on the number of rows
_PACKED_ROWS = 16  # the number of rows for which the weights are packed


class PackedLinear:
    """A linear layer: x [M, in] -> x @ weight + bias [M, out]. weight: [in, out], in either memory layout."""

    def __init__(self, weight: Tensor, bias: Tensor, exact: bool) -> None:
        self.weight, self.bias, self.batch_invariant = weight, bias, exact
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
    qkv: PackedLinear
    out: PackedLinear
    mlp_norm: Callable[[Tensor], Tensor]
    up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class KVCache:
    """The keys and values of every layer, each [B, H, positions, D / H]."""

    keys: list[Tensor]
    values: list[Tensor]


class InferenceEngine:
    """Computes next-step logits with a KV cache; equal to `CodecGPT.logits` up to rounding.

    Args:
        model: The model, in eval mode.
        batch_invariant: CPU: whether a single row must get the same bits as in a batch. False may be faster.

    Attributes:
        use_cuda_graph: Whether the generation loop should capture `decode_step` as a CUDA graph; true on a GPU.
    """

    def __init__(self, model: CodecGPT, batch_invariant: bool = True) -> None:
        backbone = model.backbone
        assert backbone.config.activation_function == GELU and not backbone.config.scale_attn_by_inverse_layer_idx
        self.model, self.config, self.pattern = model, model.config, model.pattern
        self.device, self.heads = model.device, model.config.heads
        self.use_cuda_graph = self.device.type == "cuda"
        self.layers = [
            DecoderLayer(
                attention_norm=block.ln_1,
                qkv=PackedLinear(merged_weight(block.attn.c_attn), block.attn.c_attn.bias, batch_invariant),
                out=PackedLinear(merged_weight(block.attn.c_proj), block.attn.c_proj.bias, batch_invariant),
                mlp_norm=block.ln_2,
                up=PackedLinear(merged_weight(block.mlp.c_fc), block.mlp.c_fc.bias, batch_invariant),
                down=PackedLinear(merged_weight(block.mlp.c_proj), block.mlp.c_proj.bias, batch_invariant),
            )
            for block in cast(Any, backbone.h)
        ]
        self.head = PackedLinear(model.head.weight.flatten(0, 1).t(), model.head.bias.flatten(), batch_invariant)

    def new_cache(self, rows: int, positions: int) -> KVCache:
        """Allocate an empty cache of the given size."""
        shape = (rows, self.heads, positions, self.config.width // self.heads)
        zeros = self.model.codes.weight.new_zeros
        return KVCache([zeros(shape) for _ in self.layers], [zeros(shape) for _ in self.layers])

    def prefix(self, values: Mapping[str, Tensor] | None, rows: int) -> Tensor:
        """The inputs before the first step, [B, L, D], from values [B, ...] of conditions; see `CodecGPT.prefix`.

        Each row is computed alone, so that the result does not depend on the other rows.
        """
        if not values:
            return self.model.prefix(None, rows)
        on_device = {name: each.to(self.device) for name, each in values.items()}
        prefixes = [
            self.model.prefix({name: each[i : i + 1] for name, each in on_device.items()}, 1) for i in range(rows)
        ]
        return torch.cat(prefixes)

    def forward(self, inputs: Tensor, cache: KVCache, position: int) -> Tensor:
        """Compute the logits of the next step, and add the inputs to the cache.

        Args:
            inputs: [B, n, D], at positions `position`, `position + 1`, ...; n is 1, or `position` is 0 (prefill).
            cache: The keys and values of all earlier positions.
            position: The position of the first input.

        Returns:
            Logits [B, K, C] of the step after the last input.
        """
        end = position + inputs.shape[1]
        assert inputs.shape[1] == 1 or position == 0

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i], cache.values[i]
            keys[:, :, position:end], values[:, :, position:end] = k, v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=end - position > 1)

        return self._logits(inputs + self.model.backbone.wpe.weight[position:end], attend)

    def decode_step(self, inputs: Tensor, cache: KVCache, position: Tensor) -> Tensor:
        """`forward` for a single position [B, 1, D], given as a tensor [1].

        The kernels are the same at every position, so that they can be captured as a CUDA graph.
        """
        is_future = torch.arange(cache.keys[0].shape[2], device=self.device) > position
        mask = inputs.new_zeros(1, len(is_future)).masked_fill(is_future, -torch.inf)  # in the dtype of the queries

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i].index_copy_(2, position, k), cache.values[i].index_copy_(2, position, v)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return self._logits(inputs + self.model.backbone.wpe.weight.index_select(0, position), attend)

    def _logits(self, x: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Logits [B, K, C] of the step after x [B, n, D], which includes position embeddings.

        attend: Gets the layer's index and q, k, v, each [B, H, n, D / H].
        """
        B, n, D = x.shape
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.attention_norm(x).view(B * n, D)).view(B, n, 3, self.heads, -1)
            attended = attend(i, *(part.transpose(1, 2) for part in qkv.unbind(2)))  # [B, H, n, D / H]
            x = x + layer.out(attended.transpose(1, 2).reshape(B * n, D)).view(B, n, D)
            hidden = F.gelu(layer.up(layer.mlp_norm(x).view(B * n, D)), approximate="tanh")
            x = x + layer.down(hidden).view(B, n, D)
        last = self.model.backbone.ln_f(x[:, -1])
        return self.head(last).view(B, self.config.codebooks, -1).float()
