"""Inference engine for CodecGPT: decodes one position of every row at a time, over a preallocated KV cache.

Why not `transformers`: it spends a tenth of a millisecond per layer outside the matrix products and grows its cache by
copying. Here a layer is eight calls; see `pipeline.models.inference_layers`.

On a GPU `decode_step` can be captured as a CUDA graph: see `cuda_graph.py`.

Letters: B rows, n positions, L positions of the prefix, D width, H heads, K codebooks, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.inference_layers import GELU, InferenceLayers, linear_builder


@dataclass(frozen=True)
class KVCache:
    """The keys and values of every layer, each [B, H, positions, D / H]."""

    keys: list[Tensor]
    values: list[Tensor]


class InferenceEngine:
    """Computes step after step with a KV cache; with its head, equal to `CodecGPT.logits` up to rounding.

    Args:
        model: The model, in eval mode.
        batch_invariant: CPU: whether a single row must get the same bits as in a batch. False may be faster.

    Attributes:
        head: Turns the output of `forward` or `decode_step` into logits.
        use_cuda_graph: Whether the generation loop should capture `decode_step` as a CUDA graph; true on a GPU.
    """

    def __init__(self, model: CodecGPT, batch_invariant: bool = True) -> None:
        backbone = model.backbone
        assert backbone.config.activation_function == GELU and not backbone.config.scale_attn_by_inverse_layer_idx
        self.model, self.config, self.pattern = model, model.config, model.pattern
        self.device, self.heads = model.device, model.config.heads
        self.use_cuda_graph = self.device.type == "cuda"
        build = linear_builder(model.is_quantized, self.device, batch_invariant)
        self.layers, self.head = InferenceLayers(backbone, build), model.head.decoder(build)

    def new_cache(self, rows: int, positions: int) -> KVCache:
        """Allocate an empty cache of the given size."""
        shape = (rows, self.heads, positions, self.config.width // self.heads)
        zeros, layers = self.model.codes.weight.new_zeros, range(len(self.layers))
        return KVCache([zeros(shape) for _ in layers], [zeros(shape) for _ in layers])

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
        """Compute the output of the backbone for the next step, and add the inputs to the cache.

        Args:
            inputs: [B, n, D], at positions `position`, `position + 1`, ...; n is 1, or `position` is 0 (prefill).
            cache: The keys and values of all earlier positions.
            position: The position of the first input.

        Returns:
            [B, D], from which the head predicts the step after the last input.
        """
        end = position + inputs.shape[1]
        assert inputs.shape[1] == 1 or position == 0

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i], cache.values[i]
            keys[:, :, position:end], values[:, :, position:end] = k, v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=end - position > 1)

        return self.layers(inputs + self.model.backbone.wpe.weight[position:end], attend)

    def decode_step(self, inputs: Tensor, cache: KVCache, position: Tensor) -> Tensor:
        """`forward` for a single position [B, 1, D], given as a tensor [1].

        The kernels are the same at every position, so that they can be captured as a CUDA graph.
        """
        is_future = torch.arange(cache.keys[0].shape[2], device=self.device) > position
        mask = inputs.new_zeros(1, len(is_future)).masked_fill(is_future, -torch.inf)  # in the dtype of the queries

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[i].index_copy_(2, position, k), cache.values[i].index_copy_(2, position, v)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return self.layers(inputs + self.model.backbone.wpe.weight.index_select(0, position), attend)
