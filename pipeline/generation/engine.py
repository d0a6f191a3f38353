"""A CodecGPT laid out for sampling: one position of every row at a time, over a cache allocated once.

`transformers` spends a tenth of a millisecond a layer around its products and grows its cache by copying; here a layer
is eight calls. The products decide the rest. On a CPU they go through oneDNN with weights packed for it: faster than
a plain product for two rows or more, and the same bits for a row alone, among others, and on any number of threads. For
a row alone a plain matrix-vector product differs in the last bits, and in speed as the CPU will have it: a quarter
faster on one that was measured, half as fast on another. `exact=False` takes it.
On a GPU `read_at` can be captured as one graph, so that a step costs a launch and not two hundred.

Letters: B rows, n positions, D width, H heads, K codebooks, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.codec_gpt import GELU, CodecGPT

_SUM = 1024  # oneDNN adds up so many products in one order, whatever the number of rows
_ROWS = 16  # that the packing is made for


class PackedLinear:
    """x [M, in] -> x @ weight + bias [M, out]. weight: [in, out], in either memory layout."""

    def __init__(self, weight: Tensor, bias: Tensor, exact: bool) -> None:
        self.weight, self.bias, self.batch_invariant = weight, bias, exact
        self.is_packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and _onednn()
        self._packed: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if not self.is_packed or (len(x) == 1 and not self.batch_invariant):
            return torch.addmm(self.bias, x, self.weight)
        packed = self._packed or self._pack()
        parts = x.split(-(-x.shape[1] // len(packed)), dim=1)
        product = torch.ops.mkldnn._linear_pointwise
        y = product(parts[0].contiguous(), packed[0], self.bias, "none", [], "")
        for part, weight in zip(parts[1:], packed[1:], strict=True):
            y += product(part.contiguous(), weight, None, "none", [], "")
        return y

    def _pack(self) -> list[Tensor]:
        size = -(-len(self.weight) // -(-len(self.weight) // _SUM))
        parts = self.weight.split(size)
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(part.t().contiguous(), _ROWS) for part in parts]
        return self._packed


def _onednn() -> bool:
    """Whether this build of torch has the operators that its own compiler uses for packed weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@dataclass(frozen=True)
class DecoderLayer:
    """One block of GPT-2."""

    attention_norm: Callable[[Tensor], Tensor]
    qkv: PackedLinear
    out: PackedLinear
    mlp_norm: Callable[[Tensor], Tensor]
    up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer: [B, H, positions, D / H] each."""

    keys: list[Tensor]
    values: list[Tensor]


class InferenceEngine:
    """Reads positions and predicts codes; equal to `model.logits` but for rounding.

    exact: whether a row alone must give the same bits as among others (CPU). captures: whether steps are captured as
    a graph (GPU).
    """

    def __init__(self, model: CodecGPT, batch_invariant: bool = True) -> None:
        backbone = model.backbone
        assert backbone.config.activation_function == GELU and not backbone.config.scale_attn_by_inverse_layer_idx
        self.model, self.config, self.pattern = model, model.config, model.pattern
        self.device, self.heads = model.null_prompt.device, model.config.heads
        self.use_cuda_graph = self.device.type == "cuda"
        self.layers = [
            DecoderLayer(
                attention_norm=block.ln_1,
                qkv=PackedLinear(block.attn.c_attn.weight, block.attn.c_attn.bias, batch_invariant),
                out=PackedLinear(block.attn.c_proj.weight, block.attn.c_proj.bias, batch_invariant),
                mlp_norm=block.ln_2,
                up=PackedLinear(block.mlp.c_fc.weight, block.mlp.c_fc.bias, batch_invariant),
                down=PackedLinear(block.mlp.c_proj.weight, block.mlp.c_proj.bias, batch_invariant),
            )
            for block in cast(Any, backbone.h)
        ]
        self.head = PackedLinear(model.head.weight.flatten(0, 1).t(), model.head.bias.flatten(), batch_invariant)

    def new_cache(self, rows: int, positions: int) -> KVCache:
        """Room for so many positions of so many rows."""
        shape = (rows, self.heads, positions, self.config.width // self.heads)
        new = self.model.null_prompt.new_zeros
        return KVCache([new(shape) for _ in self.layers], [new(shape) for _ in self.layers])

    def condition(self, prompts: Tensor | None, rows: int) -> Tensor:
        """Prompts [B, P] or none -> position 0 [B, 1, D]; each row alone, so that the others change nothing."""
        if prompts is None:
            return self.model.condition(None, rows)
        prompts = prompts.to(self.device)
        return torch.cat([self.model.condition(prompts[i : i + 1], 1) for i in range(rows)])

    def forward(self, inputs: Tensor, cache: KVCache, at: int) -> Tensor:
        """Inputs [B, n, D] from position `at` on -> logits [B, K, C] of what follows the last.

        n is 1, or `at` is 0.
        """
        end = at + inputs.shape[1]
        assert inputs.shape[1] == 1 or at == 0

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i], cache.values[i]
            keys[:, :, at:end], values[:, :, at:end] = k, v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=end - at > 1)

        return self._logits(inputs + self.model.backbone.wpe.weight[at:end], attend)

    def decode_step(self, inputs: Tensor, cache: KVCache, at: Tensor) -> Tensor:
        """As `read` of one position [B, 1, D] that stands in a tensor [1]: the same kernels whatever the position."""
        unseen = torch.arange(cache.keys[0].shape[2], device=self.device) > at
        mask = inputs.new_zeros(1, len(unseen)).masked_fill(unseen, -torch.inf)  # of the queries' kind, as GPUs want it

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i].index_copy_(2, at, k), cache.values[i].index_copy_(2, at, v)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return self._logits(inputs + self.model.backbone.wpe.weight.index_select(0, at), attend)

    def _logits(self, x: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Inputs with their positions [B, n, D] -> logits [B, K, C]; attend(layer, q, k, v) of [B, H, n, D / H]."""
        B, n, D = x.shape
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.attention_norm(x).view(B * n, D)).view(B, n, 3, self.heads, -1)
            seen = attend(i, *(part.transpose(1, 2) for part in qkv.unbind(2)))
            x = x + layer.out(seen.transpose(1, 2).reshape(B * n, D)).view(B, n, D)
            wide = F.gelu(layer.up(layer.mlp_norm(x).view(B * n, D)), approximate="tanh")
            x = x + layer.down(wide).view(B, n, D)
        last = self.model.backbone.ln_f(x[:, -1])
        return self.head(last).view(B, self.config.codebooks, -1).float()
